// Fingerprints of tensors' bytes: 64 bits that differ, but for an accident, as soon as a bit of the tensor does.
//
// Reading memory takes the time. A tensor goes through in pieces, each in 64 lanes of 32 bits whose steps lose nothing:
// h = g((h ^ x) m) with m odd and g(h) = h ^ (h >> 15). So no change of one value is missed, and of several values only by
// an accident. Semantics: tests/reference/fingerprints.py.

#include <omp.h>

#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t LANES = 64, PIECE = 1 << 18;  // in values of 32 bits
constexpr uint32_t FACTOR = 0x9E3779B1;

inline uint64_t mixed(uint64_t h, uint64_t value) {
    h = (h ^ value) * 0xBF58476D1CE4E5B9ull;
    return h ^ (h >> 29);
}

uint64_t of_piece(const float* from, int64_t count) {
    uint32_t lanes[LANES];
    for (int64_t lane = 0; lane < LANES; lane++) lanes[lane] = uint32_t(lane);
    for (int64_t i = 0; i + LANES <= count; i += LANES)
        for (int64_t lane = 0; lane < LANES; lane++) {
            uint32_t value;
            std::memcpy(&value, from + i + lane, sizeof(value));
            const uint32_t h = (lanes[lane] ^ value) * FACTOR;
            lanes[lane] = h ^ (h >> 15);
        }
    uint64_t h = uint64_t(count);
    for (int64_t lane = 0; lane < LANES; lane++) h = mixed(h, lanes[lane]);
    for (int64_t i = count / LANES * LANES; i < count; i++) {
        uint32_t value;
        std::memcpy(&value, from + i, sizeof(value));
        h = mixed(h, value);
    }
    return h;
}

}  // namespace

// tensors: where each begins, and how many values of 32 bits it has. found: one for each.
extern "C" void fingerprints(const int64_t* tensors, int64_t count, uint64_t* found, int32_t threads) {
    struct Part {
        const float* from;
        int64_t count;
    };
    std::vector<Part> parts;
    std::vector<int64_t> ends;
    for (int64_t tensor = 0; tensor < count; tensor++) {
        const float* from = reinterpret_cast<const float*>(tensors[2 * tensor]);
        const int64_t size = tensors[2 * tensor + 1];
        for (int64_t first = 0; first < size; first += PIECE) parts.push_back({from + first, std::min(PIECE, size - first)});
        ends.push_back(int64_t(parts.size()));
    }
    std::vector<uint64_t> of_parts(parts.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t part = 0; part < int64_t(parts.size()); part++)
        of_parts[part] = of_piece(parts[part].from, parts[part].count);
    int64_t part = 0;
    for (int64_t tensor = 0; tensor < count; tensor++) {
        uint64_t h = 0;
        for (; part < ends[tensor]; part++) h = mixed(h, of_parts[part]);
        found[tensor] = h;
    }
}
