// Attention of packed rows, each over its own path, forward and backward.
//
//     out[t] = sum_s softmax_{s in path(t)}(scaling * query[t] . key[s]) value[s]
//
// A block is a path and the tail of it whose queries are the block's own; every packed row is the query of one block. Keys
// and values are gathered once for a block and a head of keys. Queries then go through in tiles, which see the keys up to
// their last query's own: nothing after it is computed. The backward pass computes the weights again from the normalisers.
// Threads write to places of their own, so the same inputs give the same bits. Semantics: tests/reference/
// one_sequence_a_forward.py.

#include <cmath>
#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t QUERIES = 36;  // of a tile

// (T, heads, dim) with its distances between rows and between heads; dim is contiguous.
template <typename T>
struct Heads {
    T* data;
    int64_t row, head;

    T* at(int64_t r, int64_t h) const { return data + r * row + h * head; }
};

struct Block {
    const int64_t* path;
    int64_t first_query, length;
};

struct Problem {
    Heads<const float> query, key, value;
    const int64_t* paths;   // the blocks' paths, one after the other
    const int64_t* blocks;  // (count, 3): where the path starts in `paths`, its first query, its length
    int64_t count, heads, key_heads, dim, window;
    float scaling;

    Block block(int64_t i) const { return {paths + blocks[3 * i], blocks[3 * i + 1], blocks[3 * i + 2]}; }
    Heads<const float> packed(const float* data) const { return {data, heads * dim, dim}; }
    Heads<float> packed(float* data) const { return {data, heads * dim, dim}; }
};

// Some neighbouring queries of a block, and the columns of keys that any of them sees.
struct Tile {
    int64_t first, rows, begin, end, columns;

    Tile(const Problem& problem, const Block& block, int64_t first)
        : first(first),
          rows(std::min(QUERIES, block.length - first)),
          begin(std::max<int64_t>(0, first - problem.window + 1) / WIDTH * WIDTH),
          end(first + rows),
          columns(padded(end) - begin) {}
};

inline Vector exponential(Vector x) {
    // 2ⁿ exp(r) with n whole and |r| <= log(2) / 2; adding 1.5 * 2²³ rounds to a whole number.
    x = x < -87.0f ? Vector{} - 87.0f : x;
    const Vector n = (x * 1.44269504089f + 12582912.0f) - 12582912.0f;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    // Taylor's coefficients, moved a little to spread the error over the interval: Cephes, expf.
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector power;
    std::memcpy(&power, &exponent, sizeof power);
    return p * power;
}

inline float sum(Vector values) {
    float found = 0;
    for (int i = 0; i < WIDTH; i++) found += values[i];
    return found;
}

inline float largest(Vector values) {
    float found = values[0];
    for (int i = 1; i < WIDTH; i++) found = std::max(found, values[i]);
    return found;
}

// Rows of one head, one after the other: (count, dim).
inline void gather(Heads<const float> source, const int64_t* rows, int64_t count, int64_t head, int64_t dim, float factor,
                   float* target) {
    for (int64_t i = 0; i < count; i++) {
        const float* from = source.at(rows[i], head);
        for (int64_t d = 0; d < dim; d++) target[i * dim + d] = from[d] * factor;
    }
}

inline void spread(const float* source, const int64_t* rows, int64_t count, int64_t head, int64_t dim, const float* factors,
                   Heads<float> target) {
    for (int64_t i = 0; i < count; i++) {
        float* to = target.at(rows[i], head);
        for (int64_t d = 0; d < dim; d++) to[d] = source[i * dim + d] * factors[i];
    }
}

// A block's keys and values for one head, as the products read them.
struct Panel {
    std::vector<float> rows, columns;  // (length, dim), (dim, width)
    int64_t width = 0, dim = 0;

    void fill(Heads<const float> source, const Block& block, int64_t head, int64_t size) {
        dim = size;
        width = padded(block.length);
        rows.resize(block.length * dim);
        columns.resize(width * dim);
        gather(source, block.path, block.length, head, dim, 1.0f, rows.data());
        transpose({rows.data(), dim}, block.length, dim, columns.data(), width);
    }
    Rows<const float> from(int64_t first) const { return {rows.data() + first * dim, dim}; }
    Rows<const float> columns_from(int64_t first) const { return {columns.data() + first, width}; }
};

// Scores of what a query doesn't see.
inline void hide(const Problem& problem, const Tile& tile, int64_t i, float* scores) {
    const int64_t seen = tile.first + i + 1 - tile.begin;
    for (int64_t j = 0; j < seen - problem.window; j++) scores[j] = -INFINITY;
    for (int64_t j = seen; j < tile.columns; j++) scores[j] = -INFINITY;
}

// exp(score - shift), and 0 where it is hidden
inline Vector weight(Vector score, float shift) {
    return score == -INFINITY ? Vector{} : exponential(score - shift);
}

// Turns scores into unnormalised weights; gives their sum's inverse and its logarithm with the scores' shift.
inline void soften(float* scores, int64_t columns, float& inverse, float& normalizer) {
    Vector most = load(scores);
    for (int64_t j = WIDTH; j < columns; j += WIDTH) {
        const Vector x = load(scores + j);
        most = x > most ? x : most;
    }
    const float top = largest(most);
    Vector total{};
    for (int64_t j = 0; j < columns; j += WIDTH) {
        const Vector found = weight(load(scores + j), top);
        total += found;
        store(scores + j, found);
    }
    inverse = 1.0f / sum(total);
    normalizer = top + std::log(sum(total));
}

void forward_block(const Problem& problem, const Block& block, int64_t key_head, float* out, float* normalizers) {
    const int64_t dim = problem.dim, group = problem.heads / problem.key_heads;
    Panel keys, values;
    keys.fill(problem.key, block, key_head, dim);
    values.fill(problem.value, block, key_head, dim);
    std::vector<float> queries(QUERIES * dim), scores(QUERIES * keys.width), found(QUERIES * dim);
    for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
        for (int64_t first = block.first_query; first < block.length; first += QUERIES) {
            const Tile tile(problem, block, first);
            const int64_t* rows = block.path + first;
            float inverse[QUERIES];
            gather(problem.query, rows, tile.rows, head, dim, problem.scaling, queries.data());
            multiply(false, tile.rows, tile.columns, dim, {queries.data(), dim, 1}, keys.columns_from(tile.begin),
                     {scores.data(), tile.columns});
            for (int64_t i = 0; i < tile.rows; i++) {
                float* own = scores.data() + i * tile.columns;
                hide(problem, tile, i, own);
                soften(own, tile.columns, inverse[i], normalizers[rows[i] * problem.heads + head]);
            }
            multiply(false, tile.rows, dim, tile.end - tile.begin, {scores.data(), tile.columns, 1},
                     values.from(tile.begin), {found.data(), dim});
            spread(found.data(), rows, tile.rows, head, dim, inverse, problem.packed(out));
        }
}

// grad_key and grad_value: the block's own rows, (length, key_heads, dim).
void backward_block(const Problem& problem, const Block& block, int64_t key_head, const float* grad, const float* out,
                    const float* normalizers, float* grad_query, float* grad_key, float* grad_value) {
    const int64_t dim = problem.dim, group = problem.heads / problem.key_heads, step = problem.key_heads * dim;
    Panel keys, values;
    keys.fill(problem.key, block, key_head, dim);
    values.fill(problem.value, block, key_head, dim);
    std::vector<float> queries(QUERIES * dim), above(QUERIES * dim), found(QUERIES * dim);
    std::vector<float> weights(QUERIES * keys.width), slopes(QUERIES * keys.width);
    for (int64_t i = 0; i < block.length; i++) {
        std::fill_n(grad_key + i * step + key_head * dim, dim, 0.0f);
        std::fill_n(grad_value + i * step + key_head * dim, dim, 0.0f);
    }
    for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
        for (int64_t first = block.first_query; first < block.length; first += QUERIES) {
            const Tile tile(problem, block, first);
            const int64_t *rows = block.path + first, seen = tile.end - tile.begin;
            float factors[QUERIES];
            gather(problem.query, rows, tile.rows, head, dim, problem.scaling, queries.data());
            gather(problem.packed(grad), rows, tile.rows, head, dim, 1.0f, above.data());
            multiply(false, tile.rows, tile.columns, dim, {queries.data(), dim, 1}, keys.columns_from(tile.begin),
                     {weights.data(), tile.columns});
            multiply(false, tile.rows, tile.columns, dim, {above.data(), dim, 1}, values.columns_from(tile.begin),
                     {slopes.data(), tile.columns});
            for (int64_t i = 0; i < tile.rows; i++) {
                float *own = weights.data() + i * tile.columns, *slope = slopes.data() + i * tile.columns;
                hide(problem, tile, i, own);
                const float* result = problem.packed(out).at(rows[i], head);
                Vector products{};
                for (int64_t d = 0; d < dim; d += WIDTH) products += load(result + d) * load(above.data() + i * dim + d);
                const float mean = sum(products), normalizer = normalizers[rows[i] * problem.heads + head];
                for (int64_t j = 0; j < tile.columns; j += WIDTH) {
                    const Vector p = weight(load(own + j), normalizer);
                    store(own + j, p);
                    store(slope + j, p * (load(slope + j) - mean));
                }
                factors[i] = problem.scaling;
            }
            const int64_t place = tile.begin * step + key_head * dim;
            multiply(true, seen, dim, tile.rows, {weights.data(), 1, tile.columns}, {above.data(), dim},
                     {grad_value + place, step});
            multiply(true, seen, dim, tile.rows, {slopes.data(), 1, tile.columns}, {queries.data(), dim},
                     {grad_key + place, step});
            multiply(false, tile.rows, dim, seen, {slopes.data(), tile.columns, 1}, keys.from(tile.begin),
                     {found.data(), dim});
            spread(found.data(), rows, tile.rows, head, dim, factors, problem.packed(grad_query));
        }
}

// The sum of what the blocks found for each row, in the blocks' order.
void add_up(const Problem& problem, const float* slots, int64_t tokens, float* found) {
    const int64_t size = problem.key_heads * problem.dim, share = 64;
#pragma omp for schedule(static, 1)
    for (int64_t part = 0; part < (tokens + share - 1) / share; part++) {
        const int64_t low = part * share, high = std::min(tokens, low + share);
        std::fill(found + low * size, found + high * size, 0.0f);
        for (int64_t i = 0; i < problem.count; i++) {
            const Block block = problem.block(i);
            const float* own = slots + problem.blocks[3 * i] * size;
            for (int64_t s = 0; s < block.length; s++)
                if (block.path[s] >= low && block.path[s] < high)
                    for (int64_t d = 0; d < size; d++) found[block.path[s] * size + d] += own[s * size + d];
        }
    }
}

Problem problem_of(const float* query, const float* key, const float* value, const int64_t* strides, const int64_t* paths,
                   const int64_t* blocks, const int64_t* sizes, float scaling) {
    return {{query, strides[0], strides[1]},
            {key, strides[2], strides[3]},
            {value, strides[4], strides[5]},
            paths,
            blocks,
            sizes[0],
            sizes[1],
            sizes[2],
            sizes[3],
            sizes[4],
            scaling};
}

}  // namespace

// sizes: blocks, heads, heads of keys, dim (a multiple of WIDTH), window. strides: of rows and heads of query, key, value.
// out: (T, heads, dim) and normalizers: (T, heads), written.
extern "C" void packed_attention_forward(const float* query, const float* key, const float* value, const int64_t* strides,
                                         const int64_t* paths, const int64_t* blocks, const int64_t* sizes, float scaling,
                                         float* out, float* normalizers, int32_t threads) {
    const Problem problem = problem_of(query, key, value, strides, paths, blocks, sizes, scaling);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < problem.count * problem.key_heads; task++)
        forward_block(problem, problem.block(task / problem.key_heads), task % problem.key_heads, out, normalizers);
}

// grad, out: (T, heads, dim). slots: room for twice (length of paths, key_heads, dim). The gradients, of the shapes of
// query, key and value, are written.
extern "C" void packed_attention_backward(const float* grad, const float* query, const float* key, const float* value,
                                          const int64_t* strides, const int64_t* paths, int64_t paths_length,
                                          const int64_t* blocks, const int64_t* sizes, float scaling, const float* out,
                                          const float* normalizers, int64_t tokens, float* slots, float* grad_query,
                                          float* grad_key, float* grad_value, int32_t threads) {
    const Problem problem = problem_of(query, key, value, strides, paths, blocks, sizes, scaling);
    const int64_t size = problem.key_heads * problem.dim;
    float* slots_value = slots + paths_length * size;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < problem.count * problem.key_heads; task++) {
            const int64_t i = task / problem.key_heads, place = blocks[3 * i] * size;
            backward_block(problem, problem.block(i), task % problem.key_heads, grad, out, normalizers, grad_query,
                           slots + place, slots_value + place);
        }
        add_up(problem, slots, tokens, grad_key);
        add_up(problem, slots_value, tokens, grad_value);
    }
}
