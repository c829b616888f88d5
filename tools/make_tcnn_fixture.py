"""Writes what tiny-cuda-nn's own code computes, for test/test_tcnn_layout.py.

    python tools/make_tcnn_fixture.py CHECKOUT_OF_TINY_CUDA_NN test/data/tcnn.npz

Its hash grid needs a GPU, but the text of the kernel is plain C++: it is taken from the checkout
together with the functions it calls and the loop that lays out the levels, and compiled for the
CPU, in single precision. Needs g++. Tables are drawn by `seeded_table`, which the test repeats.
"""

import argparse
from pathlib import Path
import re
import subprocess
import tempfile

import numpy as np

# levels, coarsest, finest, log2 of the entries of a level, features of an entry
GRIDS = [(5, 4, 48, 9, 2), (3, 16, 64, 12, 4), (4, 5, 1500, 10, 1), (1, 7, 7, 8, 2)]
LAYOUTS = [*GRIDS, (16, 16, 2048, 19, 2), (5, 16, 128, 17, 2), (5, 16, 256, 17, 2),
           (16, 16, 4096, 20, 2), (7, 16, 2048, 17, 2), (16, 16, 8192, 21, 2)]

PREAMBLE = r"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>
#define __device__
#define __host__
#define __global__
#define __restrict__
#define TCNN_PRAGMA_UNROLL
#define log_debug(...)
struct Index { uint32_t x, y; };
static Index blockIdx, threadIdx, blockDim{1, 1};
template <typename T, uint32_t N, size_t A = sizeof(T)> struct tvec {
    T v[N];
    tvec(T s = T(0)) { for (auto& value : v) value = s; }
    T& operator[](uint32_t i) { return v[i]; }
    const T& operator[](uint32_t i) const { return v[i]; }
};
template <uint32_t N> using vec = tvec<float, N>;
template <uint32_t N> using uvec = tvec<uint32_t, N>;
template <typename T, uint32_t N, size_t A>
tvec<T, N, A> fma(T a, const tvec<T, N, A>& b, const tvec<T, N, A>& c) {
    tvec<T, N, A> out;
    for (uint32_t i = 0; i < N; ++i) out[i] = a * b[i] + c[i];
    return out;
}
enum class GridType { Hash, Dense, Tiled };
enum class HashType { CoherentPrime };
enum class InterpolationType { Nearest, Linear, Smoothstep };
static const bool PARAMS_ALIGNED = false;
struct ParamsOffsetTable { uint32_t data[65]; uint32_t size; };
template <typename T> struct MatrixView {
    T* data; uint32_t stride;
    T& operator()(uint32_t row, uint32_t column) { return data[column * stride + row]; }
};
inline float identity_fun(float v) { return v; }
inline float identity_derivative(float) { return 1.f; }
inline float smoothstep(float v) { return v; }
inline float smoothstep_derivative(float) { return 1.f; }
inline uint32_t next_multiple(uint32_t v, uint32_t m) { return (v + m - 1) / m * m; }
inline uint32_t powi(uint32_t base, uint32_t e) {
    uint32_t out = 1; while (e--) out *= base; return out; }
template <uint32_t N, uint32_t P>
uint32_t lcg_hash(const uvec<N>& pos_grid, const uint32_t primes[P]);
"""

MAIN = r"""
template <uint32_t N_DIMS, HashType HASH_TYPE>
uint32_t grid_hash(const uvec<N_DIMS>& p) { return coherent_prime_hash<N_DIMS>(p); }
@grid_scale@
@grid_resolution@
@grid_index@
@pos_fract@
@sh_enc@
@kernel_grid@
static ParamsOffsetTable lay_out(
    uint32_t m_n_levels, uint32_t base_resolution, float per_level_scale,
    uint32_t log2_hashmap_size) {
    const uint32_t N_POS_DIMS = 3;
    const GridType grid_type = GridType::Hash;
    ParamsOffsetTable m_offset_table;
    uint32_t offset = 0;
    @levels@
    m_offset_table.data[m_n_levels] = offset;
    return m_offset_table;
}
template <uint32_t F> void encode(
    uint32_t levels, uint32_t base, float growth, uint32_t log2_entries, uint32_t points,
    FILE* in, FILE* out) {
    auto table = lay_out(levels, base, growth, log2_entries);
    std::vector<float> grid(table.data[levels] * F), at(points * 3), found(points * levels * F);
    if (fread(grid.data(), 4, grid.size(), in) != grid.size()) throw 1;
    if (fread(at.data(), 4, at.size(), in) != at.size()) throw 2;
    for (blockIdx.y = 0; blockIdx.y < levels; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < points; ++blockIdx.x)
            kernel_grid<float, 3, F, HashType::CoherentPrime>(
                points, levels * F, table, base, std::log2(growth), 1000.f, nullptr,
                InterpolationType::Linear, GridType::Hash, grid.data(),
                MatrixView<const float>{at.data(), 3}, found.data(), nullptr);
    fwrite(found.data(), 4, found.size(), out);
}
int main(int argc, char** argv) {
    if (!strcmp(argv[1], "layout")) {
        auto table = lay_out(atoi(argv[2]), atoi(argv[3]), atof(argv[4]), atoi(argv[5]));
        fwrite(table.data, 4, atoi(argv[2]) + 1, stdout);
    } else if (!strcmp(argv[1], "directions")) {
        float d[3], found[16];
        struct Out { float* v; float& operator()(uint32_t i) { return v[i]; } } view{found};
        while (fread(d, 4, 3, stdin) == 3) {
            // As kernel_sh calls it, for directions moved into the unit cube.
            for (auto& c : d) c = ((c + 1) / 2) * 2.f - 1.f;
            sh_enc<float>(4, d[0], d[1], d[2], view);
            fwrite(found, 4, 16, stdout);
        }
    } else {
        int f = atoi(argv[6]);
        auto run = f == 1 ? encode<1> : f == 2 ? encode<2> : encode<4>;
        run(atoi(argv[2]), atoi(argv[3]), atof(argv[4]), atoi(argv[5]), atoi(argv[7]), stdin,
            stdout);
    }
}
"""


def function(text: str, name: str, which: int = 0) -> str:
    """Cut the definition of a function, from its template line to its last brace."""
    starts = [match.start() for match in re.finditer(rf'\n[^\n=;]*\b{name}\(', text)
              if re.match(r'[^;{]*\)\s*\{', text[match.end() - 1:])]
    start = starts[which] + 1
    before = text[:start].rstrip('\n').rpartition('\n')[2]
    if before.startswith('template'):
        start -= len(before) + 1
    return text[start:closing_brace(text, text.index('{', text.index(f'{name}(', start)))]


def closing_brace(text: str, opening: int) -> int:
    """Give the place behind the brace that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {'{': 1, '}': -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError('a brace is not closed')


def program(checkout: Path) -> str:
    """Put the program together of tiny-cuda-nn's texts."""
    include = checkout / 'include' / 'tiny-cuda-nn'
    common = (include / 'common_device.h').read_text()
    grid = (include / 'encodings' / 'grid.h').read_text()
    loop = grid.index('for (uint32_t i = 0; i < m_n_levels; ++i)')
    parts = {
        'grid_scale': function(common, 'grid_scale'),
        'grid_resolution': function(common, 'grid_resolution'),
        'grid_index': function(common, 'grid_index'),
        'pos_fract': function(common, 'pos_fract', 1),
        'sh_enc': function(common, 'sh_enc'), 'kernel_grid': function(grid, 'kernel_grid'),
        'levels': grid[loop:closing_brace(grid, grid.index('{', loop))]}
    main = MAIN
    for name, text in parts.items():
        main = main.replace(f'@{name}@', re.sub(r'throw [^;]*;', 'throw 3;', text))
    return '\n'.join([PREAMBLE, function(common, 'lcg_hash'),
                      function(common, 'coherent_prime_hash'), main])


def seeded_table(size: int) -> np.ndarray:
    """Draw the numbers of a table."""
    return np.random.RandomState(size).standard_normal(size).astype(np.float32)


def growth(levels: int, coarsest: int, finest: int) -> float:
    """Give the growth a level as nerfstudio hands it to tiny-cuda-nn."""
    if levels == 1:
        return 1.0
    return float(np.exp((np.log(finest) - np.log(coarsest)) / (levels - 1)))


def main() -> None:
    """Compile, run, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkout', type=Path)
    parser.add_argument('output', type=Path)
    arguments = parser.parse_args()
    draw = np.random.RandomState(5)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / 'grid.cpp', Path(folder) / 'grid'
        source.write_text(program(arguments.checkout))
        subprocess.run(['g++', '-std=c++17', '-O1', '-ffp-contract=off', '-include', 'cstdlib',
                        '-o', binary, source], check=True)

        def run(kind: str, *options, given: bytes = b'') -> bytes:
            return subprocess.run([binary, kind, *map(repr, options)], input=given,
                                  capture_output=True, check=True).stdout

        for index, (levels, coarsest, finest, log2, features) in enumerate(LAYOUTS):
            scale = growth(levels, coarsest, finest)
            starts = np.frombuffer(run('layout', levels, coarsest, scale, log2), np.uint32)
            found[f'sizes{index}'] = np.array([levels, coarsest, finest, log2, features])
            found[f'starts{index}'] = starts
            if index >= len(GRIDS):
                continue
            points = np.concatenate([draw.rand(60, 3), [[0, 0, 0], [1, 1, 1], [0.5, 0.25, 1]]])
            points = points.astype(np.float32)
            table = seeded_table(int(starts[-1]) * features)
            encoded = np.frombuffer(
                run('encode', levels, coarsest, scale, log2, features, len(points),
                    given=table.tobytes() + points.tobytes()), np.float32)
            found[f'points{index}'] = points
            # The kernel writes feature by feature.
            found[f'encoded{index}'] = encoded.reshape(levels * features, len(points)).T
        directions = draw.standard_normal((40, 3))
        directions = (directions / np.linalg.norm(directions, axis=1)[:, None]).astype(np.float32)
        found['directions'] = directions
        found['harmonics'] = np.frombuffer(
            run('directions', given=directions.tobytes()), np.float32).reshape(-1, 16)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.output, **found)
    print({name: value.shape for name, value in found.items()})


if __name__ == '__main__':
    main()
