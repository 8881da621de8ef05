// The ranks of adapters' updates: what operations read of them, and the products with D.
//
//     y[t] += Σ_r φ(D[r] x[t] + e[r]) U[r]        D (ranks, in), U (ranks, out), e (ranks) of token t's adapter
//
// A row's sums run in the same order whatever other rows there are, and nothing of another adapter is read. Semantics:
// tests/reference/terms.py.
#pragma once

#include <openvino/op/op.hpp>

#include <cmath>

#include "dots.h"

namespace {

// Tokens that are multiplied at once, so that D and U are read once for all of them.
constexpr int TOKENS = 4;
constexpr int64_t NUMBERS = 6, HEADER = 5, ENTRY = 4;

// An update as a graph has it.
struct Part {
    int64_t update;  // its place in the plan
    int64_t layer;   // which of the y
    int64_t column, width;  // where in y
    int64_t in;
    int64_t activation;
};

enum Activation { IDENTITY, RELU, GELU, SILU, TANH };

inline float activated(int64_t activation, float x) {
    switch (activation) {
        case RELU: return x < 0 ? 0 : x;
        case GELU: return 0.5f * x * (1 + std::erf(x * 0.70710678f));
        case SILU: return x / (1 + std::exp(-x));
        case TANH: return std::tanh(x);
        default: return x;
    }
}

// An adapter's weights for one update, D and U in float32 or bfloat16.
template <typename N>
struct Matrices {
    const N *down, *up;
    const float* bias;  // null for none
    int64_t ranks;
};

// What a forward's tokens read: 64-bit numbers in halves of 32, made by `native.py`.
struct Plan {
    int64_t blocks = 0, tokens = 0, updates = 0, adapters = 0, bytes = 0;  // bytes: of a number of D and U
    const int64_t *ends = nullptr, *adapter = nullptr, *order = nullptr, *owners = nullptr, *weights = nullptr;

    Plan() = default;
    explicit Plan(const ov::Tensor& given) {
        const int64_t *data = reinterpret_cast<const int64_t*>(given.data<const int32_t>()), size = given.get_size() / 2;
        OPENVINO_ASSERT(size >= HEADER, "the plan is empty");
        blocks = data[0], tokens = data[1], updates = data[2], adapters = data[3], bytes = data[4];
        ends = data + HEADER, adapter = ends + blocks, order = adapter + blocks;
        owners = order + tokens, weights = owners + tokens;
        OPENVINO_ASSERT(size == HEADER + 2 * (blocks + tokens) + ENTRY * updates * adapters, "the plan has another size");
    }

    // Block by block the tokens of one adapter.
    int64_t begin(int64_t block) const { return block ? ends[block - 1] : 0; }

    template <typename N>
    Matrices<N> of(int64_t update, int64_t owner) const {
        const int64_t* entry = weights + ENTRY * (update * adapters + owner);
        return {reinterpret_cast<const N*>(entry[0]), reinterpret_cast<const N*>(entry[1]),
                reinterpret_cast<const float*>(entry[2]), entry[3]};
    }
};

// φ(D x + e) of T rows of x. What is `ahead` bytes from D on is asked for from memory, unless that is 0.
template <int T, typename N>
void reduce(const Part& part, const Matrices<N>& own, const float* const* x, float* const* low, int64_t ahead = 0) {
    constexpr int R = T == 1 ? 8 : 4;
    int64_t r = 0;
    for (; r + R <= own.ranks; r += R) dots<T, R>(x, own.down + r * part.in, part.in, low, r, ahead);
    for (; r < own.ranks; r++) dots<T, 1>(x, own.down + r * part.in, part.in, low, r, ahead);
    if (own.bias || part.activation != IDENTITY)
        for (int t = 0; t < T; t++)
            for (r = 0; r < own.ranks; r++) {
                float& value = low[t][r];
                value = activated(part.activation, own.bias ? value + own.bias[r] : value);
            }
}

}  // namespace
