// What LoRA adds to a linear layer, in one pass over the layer's rows.
//
//     u = x Aᵀ,  y += s u Bᵀ                                              (forward)
//     v = s g B,  dx += v A,  dA = vᵀ x,  dB = s gᵀ u                     (backward, g = dL/dy)
//
// A is (r, in), B (out, r). Rows go through in chunks that stay in a core's cache, so that x, y, g and dx are read from
// memory once each. Threads take fixed shares of the rows and their sums are added in the threads' order: the same number
// of threads gives the same bits. Semantics: tests/reference/lora.py.

#include <omp.h>

#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t CHUNK = 24;

// Tiles for products with r rows: eight rows at once where registers allow.
#if defined(__AVX512F__)
constexpr int RANK_ROWS = 8, RANK_COLUMNS = 3;
#else
constexpr int RANK_ROWS = ROWS, RANK_COLUMNS = COLUMNS;
#endif

// Ask for values in their order while something else is computed: the tiles read them in another, which no prefetcher
// foresees.
inline void fetch(const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(float)) __builtin_prefetch(from + i, 1, 2);
}

// Columns of a product with r of them.
inline int64_t padded_rank(int64_t r) { return r <= WIDTH / 2 ? WIDTH / 2 : padded(r); }

}  // namespace

// in and out: multiples of WIDTH. low: (n, r), written; y: (n, out), added to.
extern "C" void low_rank_forward(const float* x, const float* a, const float* b, float* low, float* y, int64_t n, int64_t in,
                                 int64_t out, int64_t r, float scaling, int32_t threads) {
    const int64_t width = padded_rank(r);
    std::vector<float> a_t(in * width), b_t(r * out);
    transpose({a, in}, r, in, a_t.data(), width);
    for (int64_t k = 0; k < r; k++)
        for (int64_t j = 0; j < out; j++) b_t[k * out + j] = b[j * r + k] * scaling;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> u(CHUNK * width);
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < (n + CHUNK - 1) / CHUNK; chunk++) {
            const int64_t first = chunk * CHUNK, rows = std::min(CHUNK, n - first);
            fetch(y + first * out, rows * out);
            multiply(false, rows, width, in, {x + first * in, in, 1}, {a_t.data(), width}, {u.data(), width});
            for (int64_t i = 0; i < rows; i++) std::copy_n(u.data() + i * width, r, low + (first + i) * r);
            multiply(true, rows, out, r, {u.data(), width, 1}, {b_t.data(), out}, {y + first * out, out});
        }
    }
}

// grad_x: (n, in), added to; grad_a: (r, in) and grad_b: (out, r), written. Each may be null, and isn't computed then.
extern "C" void low_rank_backward(const float* grad, const float* x, const float* low, const float* a, const float* b,
                                  float* grad_x, float* grad_a, float* grad_b, int64_t n, int64_t in, int64_t out, int64_t r,
                                  float scaling, int32_t threads) {
    const int64_t width = padded_rank(r);
    std::vector<float> b_padded(out * width);  // s B
    for (int64_t j = 0; j < out; j++)
        for (int64_t k = 0; k < r; k++) b_padded[j * width + k] = b[j * r + k] * scaling;
    const int64_t own_a = grad_a ? r * in : 0, own_b = grad_b ? r * out : 0;
    std::vector<float> sums(threads * (own_a + own_b));  // zeros
#pragma omp parallel num_threads(threads)
    {
        float* sum_a = sums.data() + omp_get_thread_num() * (own_a + own_b);
        float* sum_b = sum_a + own_a;
        std::vector<float> v(CHUNK * width);
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < (n + CHUNK - 1) / CHUNK; chunk++) {
            const int64_t first = chunk * CHUNK, rows = std::min(CHUNK, n - first);
            const float *g = grad + first * out, *own_x = x + first * in;
            if (grad_x) fetch(grad_x + first * in, rows * in);
            if (grad_a) fetch(own_x, rows * in);
            if (grad_x || grad_a)
                multiply(false, rows, width, out, {g, out, 1}, {b_padded.data(), width}, {v.data(), width});
            if (grad_b)
                multiply<RANK_ROWS, RANK_COLUMNS>(true, r, out, rows, {low + first * r, 1, r}, {g, out}, {sum_b, out});
            if (grad_x) multiply(true, rows, in, r, {v.data(), width, 1}, {a, in}, {grad_x + first * in, in});
            if (grad_a)
                multiply<RANK_ROWS, RANK_COLUMNS>(true, r, in, rows, {v.data(), 1, width}, {own_x, in}, {sum_a, in});
        }
#pragma omp for schedule(static)
        for (int64_t part = 0; part < r * 2; part++) {
            const int64_t k = part / 2;
            for (int64_t thread = 1; thread < threads; thread++) {
                const float* other = sums.data() + thread * (own_a + own_b);
                if (part % 2 == 0 && grad_a)
                    for (int64_t j = k * in; j < (k + 1) * in; j++) sums[j] += other[j];
                if (part % 2 == 1 && grad_b)
                    for (int64_t j = own_a + k * out; j < own_a + (k + 1) * out; j++) sums[j] += other[j];
            }
            if (part % 2 == 0 && grad_a) std::copy_n(sums.data() + k * in, in, grad_a + k * in);
            if (part % 2 == 1 && grad_b)
                for (int64_t j = 0; j < out; j++) grad_b[j * r + k] = sums[own_a + k * out + j] * scaling;
        }
    }
}
