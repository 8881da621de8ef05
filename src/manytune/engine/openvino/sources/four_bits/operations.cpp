// Products with weights of 4 bits, and gates, as operations of OpenVINO's graphs. Formulas: `product.h`; a row's sums run
// in the same order whatever other rows there are. Semantics: tests/reference/four_bits.py.

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <memory>
#include <vector>

#include "added.h"

namespace {

// From this many rows, or products with D, on they are divided among threads.
constexpr int64_t MANY_ROWS = 16, MANY_ITEMS = 5;

// In the threads of the graph, which calls this in their arena: `work(i)` for each i, in a few parts of one stretch each.
template <typename Work>
void divided(int64_t count, const Work& work) {
    const int64_t parts = std::min<int64_t>(count, 2 * tbb::this_task_arena::max_concurrency());
    tbb::parallel_for(int64_t(0), parts, [&](int64_t part) {
        for (int64_t i = count * part / parts; i < count * (part + 1) / parts; i++) work(i);
    });
}

// x and weights to x Wᵀ, or to silu of its first half times its second half. With a plan as third input adapters' updates
// are added to x Wᵀ.
class FourBits : public ov::op::Op {
public:
    OPENVINO_OP("ManytuneFourBits", "manytune");

    FourBits() = default;
    FourBits(const ov::OutputVector& inputs, int64_t width, bool is_gated, std::shared_ptr<const std::vector<int64_t>> parts)
        : Op(inputs), width(width), is_gated(is_gated), parts(parts) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        ov::PartialShape shape = get_input_partial_shape(0);
        if (shape.rank().is_static() && width) shape[shape.size() - 1] = width / (is_gated ? 2 : 1);
        set_output_type(0, ov::element::f32, shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<FourBits>(inputs, width, is_gated, parts);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("width", width);
        visitor.on_attribute("is_gated", is_gated);
        auto numbers = *parts;
        visitor.on_attribute("parts", numbers);
        parts = std::make_shared<const std::vector<int64_t>>(numbers);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& results, const ov::TensorVector& inputs) const override {
        ov::Shape shape = inputs[0].get_shape();
        const int64_t in = shape.back(), groups = in / GROUP, blocks = (width + LANES - 1) / LANES;
        OPENVINO_ASSERT(in && in % GROUP == 0 && int64_t(inputs[1].get_byte_size()) == blocks * groups * int64_t(sizeof(Weights)),
                        "weights of another size than the inputs");
        OPENVINO_ASSERT(!is_gated || width % (2 * LANES) == 0, "a gate of half a block");
        const int64_t rows = inputs[0].get_size() / in, out = width / (is_gated ? 2 : 1);
        shape.back() = out;
        results[0].set_shape(shape);
        const float* x = inputs[0].data<const float>();
        float* y = results[0].data<float>();
        const Weights* weights = reinterpret_cast<const Weights*>(inputs[1].data());

        const int64_t tiles = (rows + TILE - 1) / TILE;
        // The memory is kept for the next product; not left there meanwhile, as a thread that waits may begin another one.
        static thread_local std::vector<Inputs> kept;
        static thread_local std::vector<float> kept_low;
        std::vector<Inputs> memory;
        std::vector<float> low;
        memory.swap(kept);
        low.swap(kept_low);
        if (int64_t(memory.size()) < tiles * groups) memory.resize(tiles * groups);
        Inputs* rounded = memory.data();
        const Added added = inputs.size() > 2 ? Added(inputs[2], *parts, x, rows, in, width, low) : Added();
        const int64_t items = added.items(), units = std::max(items, rows);
        const auto prepare = [=, &added](int64_t unit) {
            for (int64_t item = items * unit / units; item < items * (unit + 1) / units; item++) added.reduce(item);
            for (int64_t row = rows * unit / units; row < rows * (unit + 1) / units; row++)
                quantize(x + row * in, groups, rounded + row / TILE * groups, row % TILE);
        };
        if (rows >= MANY_ROWS || items >= MANY_ITEMS)
            divided(units, prepare);
        else
            for (int64_t unit = 0; unit < units; unit++) prepare(unit);

        divided((out + LANES - 1) / LANES, [=, &added](int64_t block) {
            const __mmask16 mask = lanes(out - block * LANES);
            for (int64_t tile = 0; tile < tiles; tile++) {
                const int64_t count = std::min(rows - tile * TILE, TILE);
                __m512 found[TILE], up[TILE];
                const auto product = [=, &added](int64_t block, __m512* to) {
                    const Ahead ahead = added.ahead(block * LANES, tile * TILE, count);
                    multiply(count, weights + block * groups, groups, rounded + tile * groups, ahead, to);
                    added.add(block * LANES, tile * TILE, count, to);
                };
                product(block, found);
                if (is_gated) {
                    product(block + blocks / 2, up);
                    for (int64_t r = 0; r < count; r++) found[r] = gated(found[r], up[r]);
                }
                float* to = y + tile * TILE * out + block * LANES;
                for (int64_t r = 0; r < count; r++) _mm512_mask_storeu_ps(to + r * out, mask, found[r]);
            }
        });
        memory.swap(kept);
        low.swap(kept_low);
        return true;
    }

private:
    int64_t width = 0;  // of W, (width, in)
    bool is_gated = false;
    // NUMBERS of each update, by column.
    std::shared_ptr<const std::vector<int64_t>> parts = std::make_shared<const std::vector<int64_t>>();
};

// Two inputs, or the halves of one, to silu of the first times the second.
class Gate : public ov::op::Op {
public:
    OPENVINO_OP("ManytuneGate", "manytune");

    Gate() = default;
    explicit Gate(const ov::OutputVector& inputs) : Op(inputs) { constructor_validate_and_infer_types(); }

    void validate_and_infer_types() override {
        ov::PartialShape shape = get_input_partial_shape(0);
        if (get_input_size() == 1 && shape.rank().is_static() && shape[shape.size() - 1].is_static())
            shape[shape.size() - 1] = shape[shape.size() - 1].get_length() / 2;
        set_output_type(0, ov::element::f32, shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<Gate>(inputs);
    }

    bool visit_attributes(ov::AttributeVisitor&) override { return true; }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& results, const ov::TensorVector& inputs) const override {
        const bool is_joined = inputs.size() == 1;
        ov::Shape shape = inputs[0].get_shape();
        const int64_t between = shape.back(), out = is_joined ? between / 2 : between;
        OPENVINO_ASSERT(is_joined ? between % 2 == 0 : inputs[1].get_shape() == shape, "a gate of another size");
        const int64_t rows = between ? inputs[0].get_size() / between : 0;
        shape.back() = out;
        results[0].set_shape(shape);
        const float* gate = inputs[0].data<const float>();
        const float* up = is_joined ? gate + out : inputs[1].data<const float>();
        float* y = results[0].data<float>();
        divided(rows, [=](int64_t row) {
            for (int64_t at = 0; at < out; at += LANES) {
                const __mmask16 mask = lanes(out - at);
                const int64_t from = row * between + at;
                const __m512 left = _mm512_maskz_loadu_ps(mask, gate + from), right = _mm512_maskz_loadu_ps(mask, up + from);
                _mm512_mask_storeu_ps(y + row * out + at, mask, gated(left, right));
            }
        });
        return true;
    }
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS((std::vector<ov::Extension::Ptr>{std::make_shared<ov::OpExtension<FourBits>>(),
                                                           std::make_shared<ov::OpExtension<Gate>>()}));
