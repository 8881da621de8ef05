// Products of rows with a weight whose outputs were put into panels beforehand:
//
//     y[t, j] = bias[j] + sum over k of x[t, k] W[j, k]
//
// A panel has PANEL outputs: of each k their PANEL weights, one after the other, so that a weight is read once, from its
// front to its back. Few rows wait for memory, so the next part of the panel is fetched while the present one is
// multiplied with rows. A row's sums run in the same order whatever other rows there are, so it has the same values to the
// last bit in any company. Semantics: tests/kernels/test_panels.py.

#include <omp.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <vector>

#include "columns.h"

namespace {

// Sums that stay in registers: of so many rows, and vectors of outputs.
#if defined(__AVX512F__)
constexpr int TILE = 8;
#else
constexpr int TILE = 4;
#endif
constexpr int VECTORS = 3, PANEL = VECTORS * WIDTH;

// How many k are taken at a time: their part of a panel stays in the second cache, and that of a tile's rows in the first.
constexpr int64_t DEPTH = 576;
// With fewer tiles of rows the processor fetches ahead well enough by itself; with more, fetching takes no time.
constexpr int64_t FETCHED_FROM = 3, FETCHED_UP_TO = 12;
// Rows of one thread where there are too few panels to give all of them work.
constexpr int64_t CHUNK = 64;

struct Step {
    const char* ahead;  // what to fetch, from here on
    int64_t bytes;      // for each k; 0 for nothing
};

template <int T>
void tile(const float* x, int64_t x_row, const float* weights, int64_t depth, float* y, int64_t y_row, const float* bias, Step step) {
    Vector sums[T][VECTORS];
    for (int t = 0; t < T; t++)
        for (int c = 0; c < VECTORS; c++) sums[t][c] = load((bias ? bias : y + t * y_row) + c * WIDTH);
    for (int64_t k = 0; k < depth; k++) {
        if (step.bytes) __builtin_prefetch(step.ahead + k * step.bytes);
        Vector right[VECTORS];
        for (int c = 0; c < VECTORS; c++) right[c] = load(weights + k * PANEL + c * WIDTH);
        for (int t = 0; t < T; t++) {
            const float left = x[t * x_row + k];
            for (int c = 0; c < VECTORS; c++) sums[t][c] += left * right[c];
        }
    }
    for (int t = 0; t < T; t++)
        for (int c = 0; c < VECTORS; c++) store(y + t * y_row + c * WIDTH, sums[t][c]);
}

template <int T = TILE>
void last_tile(int64_t rows, const float* x, int64_t x_row, const float* weights, int64_t depth, float* y, int64_t y_row,
               const float* bias, Step step) {
    if constexpr (T > 0) {
        if (rows == T) return tile<T>(x, x_row, weights, depth, y, y_row, bias, step);
        last_tile<T - 1>(rows, x, x_row, weights, depth, y, y_row, bias, step);
    }
}

// All rows with one panel. What is read after it in memory is the next panel, or a few lines behind the last one, which
// may be fetched, too.
void panel(const float* x, int64_t rows, int64_t x_row, const float* weights, int64_t in, float* y, int64_t y_row,
           const float* bias) {
    const int64_t tiles = (rows + TILE - 1) / TILE;
    const bool fetches = tiles >= FETCHED_FROM && tiles <= FETCHED_UP_TO;
    for (int64_t k = 0; k < in; k += DEPTH) {
        const int64_t depth = std::min(DEPTH, in - k), bytes = depth * PANEL * int64_t(sizeof(float));
        const char* next = reinterpret_cast<const char*>(weights + (k + depth) * PANEL);
        for (int64_t number = 0, row = 0; row < rows; number++, row += TILE) {
            const Step step{next + number * (bytes / tiles), fetches ? bytes / depth / tiles : 0};
            last_tile(std::min<int64_t>(TILE, rows - row), x + row * x_row + k, x_row, weights + k * PANEL, depth,
                      y + row * y_row, y_row, k ? nullptr : bias, step);
        }
    }
}

}  // namespace

// How many outputs a panel has.
extern "C" void panel_outputs(int64_t* found) { *found = PANEL; }

// W (out, in) into panels; what the last one has too many is 0. `to`: panels * in * panel_outputs() values, not touched before.
extern "C" void pack_panels(const float* weight, int64_t out, int64_t in, float* to, int32_t threads) {
    const int64_t panels = (out + PANEL - 1) / PANEL;
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, first = (uintptr_t(to) + page - 1) / page * page;
    const uintptr_t last = uintptr_t(to + panels * in * PANEL) / page * page;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t number = 0; number < panels; number++) {
        const int64_t first = number * PANEL, mine = std::min<int64_t>(PANEL, out - first);
        float* panel = to + number * in * PANEL;
        const int64_t outputs = mine / WIDTH * WIDTH, inputs = in / WIDTH * WIDTH;
        for (int64_t i = 0; i < inputs; i += WIDTH)
            for (int64_t j = 0; j < outputs; j += WIDTH) {
                Vector rows[WIDTH], found[WIDTH];
                for (int k = 0; k < WIDTH; k++) rows[k] = load(weight + (first + j + k) * in + i);
                columns<WIDTH>(rows, found, 1);
                for (int k = 0; k < WIDTH; k++) store(panel + (i + k) * PANEL + j, found[k]);
            }
        for (int64_t i = 0; i < in; i++)
            for (int64_t j = i < inputs ? outputs : 0; j < PANEL; j++)
                panel[i * PANEL + j] = j < mine ? weight[(first + j) * in + i] : 0;
    }
}

// y = x W^T + bias, (rows, out). x_row: distance between rows. bias: a value for each output of the panels.
extern "C" void multiply_panels(const float* x, int64_t rows, int64_t x_row, const float* panels, int64_t out, int64_t in,
                                const float* bias, float* y, int32_t threads) {
    const int64_t count = (out + PANEL - 1) / PANEL;
    const int64_t chunk = count >= 4 * threads || rows <= CHUNK ? std::max<int64_t>(rows, 1) : CHUNK;
    const int64_t chunks = (rows + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < count * chunks; part++) {
        const int64_t number = part / chunks, row = part % chunks * chunk, mine = std::min(chunk, rows - row);
        const int64_t columns = std::min<int64_t>(PANEL, out - number * PANEL);
        const float *left = x + row * x_row, *weights = panels + number * in * PANEL, *first = bias + number * PANEL;
        float* to = y + row * out + number * PANEL;
        if (columns == PANEL) {
            panel(left, mine, x_row, weights, in, to, out, first);
            continue;
        }
        std::vector<float> whole(mine * PANEL);
        panel(left, mine, x_row, weights, in, whole.data(), PANEL, first);
        for (int64_t t = 0; t < mine; t++) std::memcpy(to + t * out, &whole[t * PANEL], columns * sizeof(float));
    }
}
