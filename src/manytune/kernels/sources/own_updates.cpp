// What adapters' low-rank updates add to a layer whose rows have different adapters, each read where its owner keeps it.
//
//     y[t] += s U D x[t]          D (r, in), U (out, r), s of row t's adapter
//
// Few rows have an adapter each, so that reading D and U takes the time: nothing is copied, and each is read once for UNIT
// rows. A row's sums run in the same order whatever other rows there are. Semantics: tests/reference/mixed_batch.py.

#include <omp.h>

#include <vector>

#include "columns.h"
#include "dots.h"

namespace {

constexpr int TOKENS = 4, UNIT = 16, MOST_RANKS = 64;

struct Adapter {
    const float *down, *up;
    int64_t ranks;
    float scaling;
};

// y += U low for some rows; R is U's number of ranks, or 0 for any.
template <int R>
void add(const Adapter& own, const float* low, float* const* y, int64_t rows, int64_t out) {
    const int64_t ranks = R ? R : own.ranks;
    int64_t j = 0;
    for (; j + WIDTH <= out; j += WIDTH) {
        Vector up[R ? R : MOST_RANKS];
        const float* from = own.up + j * ranks;
        if constexpr (R > 0) {
            Vector read[R];
            for (int k = 0; k < R; k++) read[k] = load(from + k * WIDTH);
            columns<R>(read, up, 1);
        } else {
            for (int64_t k = 0; k < ranks; k++)
                for (int lane = 0; lane < WIDTH; lane++) up[k][lane] = from[lane * ranks + k];
        }
        for (int64_t t = 0; t < rows; t++) {
            Vector sum = load(y[t] + j);
            for (int64_t k = 0; k < ranks; k++) sum += low[t * ranks + k] * up[k];
            store(y[t] + j, sum);
        }
    }
    for (; j < out; j++)
        for (int64_t t = 0; t < rows; t++)
            for (int64_t k = 0; k < ranks; k++) y[t][j] += low[t * ranks + k] * own.up[j * ranks + k];
}

template <int T>
void lower(const Adapter& own, const float* const* x, int64_t in, float* low) {
    constexpr int R = T == 1 ? 8 : 4;
    float* rows[T];
    for (int t = 0; t < T; t++) rows[t] = low + t * own.ranks;
    int64_t k = 0;
    for (; k + R <= own.ranks; k += R) dots<T, R>(x, own.down + k * in, in, rows, k);
    for (; k < own.ranks; k++) dots<T, 1>(x, own.down + k * in, in, rows, k);
    for (int64_t i = 0; i < T * own.ranks; i++) low[i] *= own.scaling;
}

void update(const Adapter& own, const float* const* x, float* const* y, int64_t rows, int64_t in, int64_t out) {
    float low[UNIT * MOST_RANKS];
    int64_t t = 0;
    for (; t + TOKENS <= rows; t += TOKENS) lower<TOKENS>(own, x + t, in, low + t * own.ranks);
    for (; t < rows; t++) lower<1>(own, x + t, in, low + t * own.ranks);
    switch (own.ranks) {
        case 4: return add<4>(own, low, y, rows, out);
        case 8: return add<8>(own, low, y, rows, out);
        case 16: return add<16>(own, low, y, rows, out);
        case 32: return add<32>(own, low, y, rows, out);
        default: return add<0>(own, low, y, rows, out);
    }
}

}  // namespace

// Rows `order[begin..end)` of x and y are those of one adapter: of block b, which ends at ends[b] and begins where the one
// before ends. adapters: for each block D, U and r, r = 0 for none; at most 64. x_row and y_row: distances between rows.
extern "C" void own_updates(const float* x, int64_t x_row, float* y, int64_t y_row, const int64_t* order, const int64_t* ends,
                            int64_t blocks, const int64_t* adapters, const float* scalings, int64_t in, int64_t out,
                            int32_t threads) {
    struct Part {
        int64_t block, first, count;
    };
    std::vector<Part> parts;
    for (int64_t block = 0; block < blocks; block++) {
        if (!adapters[3 * block + 2]) continue;
        for (int64_t first = block ? ends[block - 1] : 0; first < ends[block]; first += UNIT)
            parts.push_back({block, first, std::min<int64_t>(UNIT, ends[block] - first)});
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t number = 0; number < int64_t(parts.size()); number++) {
        const Part& part = parts[number];
        const int64_t* entry = adapters + 3 * part.block;
        const Adapter own{reinterpret_cast<const float*>(entry[0]), reinterpret_cast<const float*>(entry[1]), entry[2],
                          scalings[part.block]};
        const float* inputs[UNIT];
        float* results[UNIT];
        for (int64_t t = 0; t < part.count; t++) {
            inputs[t] = x + order[part.first + t] * x_row;
            results[t] = y + order[part.first + t] * y_row;
        }
        update(own, inputs, results, part.count, in, out);
    }
}
