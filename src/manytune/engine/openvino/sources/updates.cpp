// What adapters' updates add to layers, as an operation of OpenVINO's graphs: each token is multiplied with its own ranks;
// the formula is in `ranks.h`. One operation does all updates that read the same x, of any layers.

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <tbb/parallel_for.h>

#include <memory>
#include <vector>

#include "ranks.h"

namespace {

// C vectors of each of T rows of y, from column j on.
template <int T, int C, typename N>
inline void add(const float* const* low, const Matrices<N>& own, int64_t width, float* const* y, int64_t j) {
    Vector sums[T][C];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) sums[t][c] = load(y[t] + j + c * WIDTH);
    for (int64_t r = 0; r < own.ranks; r++) {
        Vector right[C];
        for (int c = 0; c < C; c++) right[c] = numbers(own.up + r * width + j + c * WIDTH);
        for (int t = 0; t < T; t++) {
            const float left = low[t][r];
            for (int c = 0; c < C; c++) sums[t][c] += left * right[c];
        }
    }
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) store(y[t] + j + c * WIDTH, sums[t][c]);
}

template <int T, typename N>
void update(const Part& part, const Matrices<N>& own, const float* const* x, float* const* y, float* const* low) {
    reduce<T>(part, own, x, low);
    int64_t j = 0;
    for (; j + 4 * WIDTH <= part.width; j += 4 * WIDTH) add<T, 4>(low, own, part.width, y, j);
    for (; j + WIDTH <= part.width; j += WIDTH) add<T, 1>(low, own, part.width, y, j);
    for (; j < part.width; j++)
        for (int t = 0; t < T; t++)
            for (int64_t r = 0; r < own.ranks; r++) y[t][j] += low[t][r] * number(own.up[r * part.width + j]);
}

// A layer's y, before and after.
struct Layer {
    const float* before;
    float* after;
    int64_t width;
};

// Columns of a y, and the updates that add to them.
struct Span {
    int64_t layer, column, width;
    std::vector<Part> parts;
};

template <typename N>
void run(const Plan& plan, int64_t block, const Span& span, const Layer& y, const float* x) {
    std::vector<float> low;
    for (int64_t at = plan.begin(block); at < plan.ends[block];) {
        const bool whole = at + TOKENS <= plan.ends[block];
        const int count = whole ? TOKENS : 1;
        float* rows[TOKENS];
        for (int t = 0; t < count; t++) {
            const int64_t first = plan.order[at + t] * y.width + span.column;
            rows[t] = y.after + first;
            std::memcpy(rows[t], y.before + first, span.width * sizeof(float));
        }
        for (const Part& part : span.parts) {
            const Matrices<N> own = plan.of<N>(part.update, plan.adapter[block]);
            if (!own.ranks) continue;
            const float* inputs[TOKENS];
            for (int t = 0; t < count; t++) inputs[t] = x + plan.order[at + t] * part.in;
            low.resize(TOKENS * own.ranks);
            float* results[TOKENS];
            for (int t = 0; t < count; t++) results[t] = low.data() + t * own.ranks;
            whole ? update<TOKENS>(part, own, inputs, rows, results) : update<1>(part, own, inputs, rows, results);
        }
        at += count;
    }
}

// Inputs: the plan, x, and then the y; outputs: the y with what is added.
class Updates : public ov::op::Op {
public:
    OPENVINO_OP("ManytuneUpdates", "manytune");

    Updates() = default;
    Updates(const ov::OutputVector& inputs, std::shared_ptr<const std::vector<int64_t>> parts) : Op(inputs), parts(parts) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        for (size_t layer = 0; layer + 2 < get_input_size(); layer++)
            set_output_type(layer, get_input_element_type(layer + 2), get_input_partial_shape(layer + 2));
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<Updates>(inputs, parts);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        auto numbers = *parts;
        visitor.on_attribute("parts", numbers);
        parts = std::make_shared<const std::vector<int64_t>>(numbers);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const Plan plan(inputs[0]);
        const float* x = inputs[1].data<const float>();
        const int64_t in = inputs[1].get_shape().back();
        std::vector<Layer> layers;
        for (size_t layer = 0; layer < outputs.size(); layer++) {
            const ov::Tensor& y = inputs[layer + 2];
            const int64_t width = y.get_shape().back();
            OPENVINO_ASSERT(int64_t(y.get_size()) == plan.tokens * width, "expected ", plan.tokens, " tokens");
            outputs[layer].set_shape(y.get_shape());
            layers.push_back({y.data<const float>(), outputs[layer].data<float>(), width});
        }
        OPENVINO_ASSERT(int64_t(inputs[1].get_size()) == plan.tokens * in, "expected ", plan.tokens, " tokens");
        const auto spans = divided(layers, in, plan.updates);
        const int64_t count = plan.blocks * spans.size();
        // In the threads of the graph, which calls this in their arena.
        tbb::parallel_for(int64_t(0), count, [&](int64_t item) {
            const Span& span = spans[item % spans.size()];
            const auto work = plan.bytes == sizeof(float) ? run<float> : run<BFloat16>;
            work(plan, item / spans.size(), span, layers[span.layer], x);
        });
        return true;
    }

private:
    // All columns, in their order.
    std::vector<Span> divided(const std::vector<Layer>& layers, int64_t in, int64_t updates) const {
        std::vector<Span> spans;
        size_t next = 0;
        const auto part = [&] {
            const int64_t* n = parts->data() + next;
            return Part{n[0], n[1], n[2], n[3], n[4], n[5]};
        };
        for (int64_t layer = 0; layer < int64_t(layers.size()); layer++) {
            int64_t column = 0;
            while (next < parts->size() && part().layer == layer) {
                const Part own = part();
                OPENVINO_ASSERT(own.in == in && own.update < updates && own.column + own.width <= layers[layer].width,
                                "an update has another size than its layer");
                const bool again = !spans.empty() && spans.back().layer == layer && !spans.back().parts.empty() &&
                                   spans.back().column == own.column && spans.back().width == own.width;
                if (!again) {
                    OPENVINO_ASSERT(own.column >= column, "updates overlap");
                    if (own.column > column) spans.push_back({layer, column, own.column - column, {}});
                    spans.push_back({layer, own.column, own.width, {}});
                    column = own.column + own.width;
                }
                spans.back().parts.push_back(own);
                next += NUMBERS;
            }
            if (column < layers[layer].width) spans.push_back({layer, column, layers[layer].width - column, {}});
        }
        return spans;
    }

    // NUMBERS of each part, by layer and column.
    std::shared_ptr<const std::vector<int64_t>> parts = std::make_shared<const std::vector<int64_t>>();
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS((std::vector<ov::Extension::Ptr>{std::make_shared<ov::OpExtension<Updates>>()}));
