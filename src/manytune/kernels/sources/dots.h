// Dot products of a few rows with an adapter's D, whose weights are float32 or bfloat16.
#pragma once

#include "tiles.h"

namespace {

// The upper half of a float32.
typedef uint16_t BFloat16;

inline float number(float value) { return value; }
inline float number(BFloat16 value) {
    const uint32_t bits = uint32_t(value) << 16;
    float found;
    std::memcpy(&found, &bits, sizeof(found));
    return found;
}

inline Vector numbers(const float* from) { return load(from); }
inline Vector numbers(const BFloat16* from) {
    typedef BFloat16 Halves __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
    typedef uint32_t Bits __attribute__((vector_size(WIDTH * 4)));
    return (Vector)(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16);
}

// R dot products of each of T rows of x with rows of D, of which the first is number `first`. What is `ahead` bytes from
// D on is asked for from memory, unless that is 0.
template <int T, int R, typename N>
inline void dots(const float* const* x, const N* down, int64_t in, float* const* low, int64_t first, int64_t ahead = 0) {
    Vector sums[T][R] = {};
    int64_t i = 0;
    for (; i + WIDTH <= in; i += WIDTH) {
        if (ahead)
            for (int r = 0; r < R; r++) __builtin_prefetch(reinterpret_cast<const char*>(down + r * in + i) + ahead);
        Vector right[R];
        for (int r = 0; r < R; r++) right[r] = numbers(down + r * in + i);
        for (int t = 0; t < T; t++) {
            const Vector left = load(x[t] + i);
            for (int r = 0; r < R; r++) sums[t][r] += left * right[r];
        }
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) {
            float sum = 0;
            for (int lane = 0; lane < WIDTH; lane++) sum += sums[t][r][lane];
            for (int64_t rest = i; rest < in; rest++) sum += x[t][rest] * number(down[r * in + rest]);
            low[t][first + r] = sum;
        }
}

}  // namespace
