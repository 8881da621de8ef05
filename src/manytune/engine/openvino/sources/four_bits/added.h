// What adapters' updates add to a product's outputs, where these are computed. Formula: `ranks.h`.
#pragma once

#include <vector>

#include "product.h"
#include "ranks.h"

namespace {

// The updates of a product of some rows. First D is multiplied, in any order of the items, and then U, column by column.
class Added {
public:
    Added() = default;

    // parts: NUMBERS of each. Columns are multiples of LANES.
    Added(const ov::Tensor& given, const std::vector<int64_t>& numbers, const float* x, int64_t rows, int64_t in,
          int64_t width, std::vector<float>& memory)
        : plan(given), x(x), low(nullptr), line(64 / plan.bytes) {
        OPENVINO_ASSERT(plan.tokens == rows, "expected ", plan.tokens, " tokens");
        for (size_t next = 0; next < numbers.size(); next += NUMBERS) {
            const int64_t* n = numbers.data() + next;
            const Part part{n[0], n[1], n[2], n[3], n[4], n[5]};
            OPENVINO_ASSERT(part.in == in && part.update < plan.updates && part.column + part.width <= width &&
                                part.column % LANES == 0 && part.width % LANES == 0,
                            "an update has another size than its layer");
            for (int64_t owner = 0; owner < plan.adapters; owner++)
                most = std::max(most, plan.of<float>(part.update, owner).ranks);
            parts.push_back(part);
        }
        const size_t size = parts.size() * rows * most;
        if (memory.size() < size) memory.resize(size);
        low = memory.data();
    }

    // How many products with D there are.
    int64_t items() const { return most ? plan.blocks * parts.size() : 0; }

    void reduce(int64_t item) const { plan.bytes == sizeof(float) ? reduced<float>(item) : reduced<BFloat16>(item); }

    // LANES columns of some rows.
    void add(int64_t column, int64_t first, int64_t rows, __m512* y) const {
        if (most) plan.bytes == sizeof(float) ? add<float>(column, first, rows, y) : add<BFloat16>(column, first, rows, y);
    }

    // What `add` will read for the columns after these.
    Ahead ahead(int64_t column, int64_t first, int64_t rows) const {
        Ahead found;
        if (!most) return found;
        for (const Part& part : parts) {
            const int64_t next = column + line - part.column;
            if (next < 0 || next >= part.width || next % line) continue;
            for (int64_t row = first; row < first + rows && found.count < TILE; row++) {
                const Matrices<char> own = plan.of<char>(part.update, plan.owners[row]);
                if (!own.ranks || (row > first && plan.owners[row] == plan.owners[row - 1])) continue;
                found.starts[found.count] = own.up + next * plan.bytes;
                found.steps[found.count++] = part.width * plan.bytes;
                found.rows = std::max(found.rows, own.ranks);
            }
        }
        return found;
    }

private:
    float* low_of(int64_t number, int64_t row) const { return low + (number * plan.tokens + row) * most; }

    template <typename N>
    void reduced(int64_t item) const {
        const int64_t count = parts.size(), block = item / count, number = item % count;
        const Matrices<N> own = plan.of<N>(parts[number].update, plan.adapter[block]);
        if (!own.ranks) return;
        int64_t ahead = 0;
        if (item + 1 < items()) {
            const int64_t after = plan.adapter[(item + 1) / count];
            const Matrices<N> next = plan.of<N>(parts[(item + 1) % count].update, after);
            ahead = next.ranks ? reinterpret_cast<const char*>(next.down) - reinterpret_cast<const char*>(own.down) : 0;
        }
        for (int64_t at = plan.begin(block); at < plan.ends[block];) {
            const bool whole = at + TOKENS <= plan.ends[block];
            const float* inputs[TOKENS];
            float* results[TOKENS];
            for (int t = 0; t < (whole ? TOKENS : 1); t++) {
                const int64_t row = plan.order[at + t];
                inputs[t] = x + row * parts[number].in, results[t] = low_of(number, row);
            }
            whole ? ::reduce<TOKENS>(parts[number], own, inputs, results, ahead)
                  : ::reduce<1>(parts[number], own, inputs, results, ahead);
            at += whole ? TOKENS : 1;
        }
    }

    template <typename N>
    void add(int64_t column, int64_t first, int64_t rows, __m512* y) const {
        for (size_t number = 0; number < parts.size(); number++) {
            const Part& part = parts[number];
            const int64_t j = column - part.column;
            if (j < 0 || j >= part.width) continue;
            for (int64_t row = 0; row < rows;) {
                const int64_t owner = plan.owners[first + row];
                int64_t count = 1;
                while (row + count < rows && plan.owners[first + row + count] == owner) count++;
                const Matrices<N> own = plan.of<N>(part.update, owner);
                const int64_t end = row + count;
                for (int64_t at = row; own.ranks && at < end;) {
                    const bool whole = at + TOKENS <= end;
                    const float* results = low_of(number, first + at);
                    whole ? add<TOKENS>(own.up + j, part.width, own.ranks, results, y + at)
                          : add<1>(own.up + j, part.width, own.ranks, results, y + at);
                    at += whole ? TOKENS : 1;
                }
                row = end;
            }
        }
    }

    template <int T, typename N>
    void add(const N* up, int64_t width, int64_t ranks, const float* low, __m512* y) const {
        Vector sums[T];
        for (int t = 0; t < T; t++) sums[t] = (Vector)y[t];
        for (int64_t r = 0; r < ranks; r++) {
            const Vector right = numbers(up + r * width);
            for (int t = 0; t < T; t++) sums[t] += low[t * most + r] * right;
        }
        for (int t = 0; t < T; t++) y[t] = (__m512)sums[t];
    }

    Plan plan;
    const float* x = nullptr;
    float* low = nullptr;  // (parts, rows, most)
    int64_t line = 0;  // numbers of a line of cache
    int64_t most = 0;  // ranks
    std::vector<Part> parts;
};

}  // namespace
