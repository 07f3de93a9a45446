// What the attention kernels share: small products by torch's brgemm, factors laid out for it, and a softmax's pieces.
//
// All products are C = A × B with A in rows, fp32 sums, and B *packed*: in bf16, two neighbouring rows of B lie side by
// side (b[k / 2][n][k % 2]), as matrix units want them; in fp32, rows as they are. So in both types a word of four
// bytes holds the elements that one column of B takes from one row of words.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>

namespace forethink {

constexpr int64_t kBlock = 64;     // keys, or columns, of one product: few shapes, since each is compiled once
constexpr int64_t kWidest = 256;   // elements of a head at most: some rows of it lie on the stack
constexpr int64_t kApart = 16;     // elements between such rows: else all begin at one place of the cache
constexpr float kHidden = -1e30f;  // a score that no softmax sees; finite, so that nothing becomes NaN

template <typename T>
constexpr int64_t kWord = 4 / static_cast<int64_t>(sizeof(T));  // elements in a word

inline int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, n, ldc, add, a, b, c, kWord<T> == 2);
}

#if defined(__GNUC__) && !defined(__clang__)
typedef uint32_t Words __attribute__((vector_size(64)));

// One of four exchanges that transpose 16 vectors: neighbours at a distance swap the halves of their blocks.
template <int Distance>
void exchange(Words* v) {
  Words low, high;
  for (uint32_t i = 0; i < 16; ++i) {
    low[i] = i & Distance ? i - Distance + 16 : i;
    high[i] = i & Distance ? i + 16 : i + Distance;
  }
  for (int i = 0; i < 16; ++i) {
    if (i & Distance) continue;
    const Words a = v[i], b = v[i + Distance];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + Distance] = __builtin_shuffle(a, b, high);
  }
}

inline void transpose_16(const uint32_t* const* rows, int64_t at, uint32_t* out, int64_t stride) {
  Words v[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) std::memcpy(&v[i], rows[i] + at, 64);
  exchange<1>(v);
  exchange<2>(v);
  exchange<4>(v);
  exchange<8>(v);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) std::memcpy(out + i * stride, &v[i], 64);
}
#else
inline void transpose_16(const uint32_t* const* rows, int64_t at, uint32_t* out, int64_t stride) {
  for (int w = 0; w < 16; ++w) {
    for (int i = 0; i < 16; ++i) out[w * stride + i] = rows[i][at + w];
  }
}
#endif

// Rows of words [count][words] → [words][stride]; columns from `count` on are not touched.
inline void transpose(const uint32_t* const* rows, int64_t count, int64_t words, uint32_t* out, int64_t stride) {
  for (int64_t r = 0; r < count; r += 16) {
    int64_t w = 0;
    if (r + 16 <= count) {
      for (; w + 16 <= words; w += 16) transpose_16(rows + r, w, out + w * stride + r, stride);
    }
    for (; w < words; ++w) {
      for (int64_t i = r; i < std::min(count, r + 16); ++i) out[w * stride + i] = rows[i][w];
    }
  }
}

// Two neighbouring rows of bf16 [n] as a row of words.
inline void pair_rows(const at::BFloat16* first, const at::BFloat16* second, int64_t n, uint32_t* words) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) words[i] = first[i].x | uint32_t{second[i].x} << 16;
}

// Rows [count, width], packed as B [width, columns]: the rows become columns; those that lack are zero.
template <typename T>
void pack_columns(const T* const* rows, int64_t count, int64_t width, int64_t columns, T* packed) {
  const int64_t words = width / kWord<T>;
  auto* out = reinterpret_cast<uint32_t*>(packed);
  transpose(reinterpret_cast<const uint32_t* const*>(rows), count, words, out, columns);
  for (int64_t w = 0; count < columns && w < words; ++w) {
    std::fill(out + w * columns + count, out + (w + 1) * columns, 0u);
  }
}

// The same rows packed as B [columns, width]: rows stay rows.
template <typename T>
void pack_rows(const T* const* rows, int64_t count, int64_t width, int64_t columns, T* packed) {
  static const T nothing[kWidest] = {};
  for (int64_t k = 0; k < columns; k += kWord<T>) {
    const T* first = k < count ? rows[k] : nothing;
    T* out = packed + k * width;
    if constexpr (kWord<T> == 1) std::memcpy(out, first, width * sizeof(T));
    else pair_rows(first, k + 1 < count ? rows[k + 1] : nothing, width, reinterpret_cast<uint32_t*>(out));
  }
}

inline uint32_t bf16_bits(float x) {  // rounded to nearest, ties to even; the NaN of a processor stays one
  const auto bits = std::bit_cast<uint32_t>(x);
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline float widened(float x) { return x; }
inline float widened(at::BFloat16 x) { return std::bit_cast<float>(uint32_t{x.x} << 16); }

template <typename T>
float inner_product(const T* a, const T* b, int64_t n) {
  float total = 0.f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += widened(a[i]) * widened(b[i]);
  return total;
}

template <typename T>
void add_scaled(const T* row, float factor, int64_t n, float* sum) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += factor * widened(row[i]);
}

// As many rows of fp32 [n] as a word has elements, written as a row of words of B.
template <typename T>
void pack_words(const float* rows, int64_t n, T* packed) {
  if constexpr (kWord<T> == 1) {
    std::memcpy(packed, rows, n * sizeof(float));
  } else {
    auto* words = reinterpret_cast<uint32_t*>(packed);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) words[i] = bf16_bits(rows[i]) | bf16_bits(rows[n + i]) << 16;
  }
}

template <typename T>
void narrow(const float* in, int64_t n, T* out) {
  if constexpr (kWord<T> == 1) {
    std::memcpy(out, in, n * sizeof(float));
  } else {
    auto* bits = reinterpret_cast<uint16_t*>(out);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) bits[i] = static_cast<uint16_t>(bf16_bits(in[i]));
  }
}

// [kBlock, width] → [width, kBlock].
template <typename T>
void transpose_block(const T* in, int64_t width, T* out) {
  const uint32_t* rows[kBlock];
  if constexpr (kWord<T> == 1) {
    for (int64_t i = 0; i < kBlock; ++i) rows[i] = reinterpret_cast<const uint32_t*>(in + i * width);
    transpose(rows, kBlock, width, reinterpret_cast<uint32_t*>(out), kBlock);
  } else {  // pairs of rows are words, whose transposition is that of the elements
    alignas(64) uint32_t pairs[kBlock / 2 * (kWidest + kApart)];
    for (int64_t i = 0; i < kBlock / 2; ++i) {
      uint32_t* pair = pairs + i * (width + kApart);
      pair_rows(in + 2 * i * width, in + (2 * i + 1) * width, width, pair);
      rows[i] = pair;
    }
    transpose(rows, kBlock / 2, width, reinterpret_cast<uint32_t*>(out), kBlock / 2);
  }
}

// A product's columns [width][size] as rows of T, rows [count][width] added first (or nullptr), each by a factor of its
// own; `put` says where a column's row begins.
template <typename T, typename Put>
void write_columns(const float* columns, int64_t width, int64_t size, int64_t count, const float* factors,
                   const float* plus, const Put& put) {
  alignas(64) float rows[kBlock * (kWidest + kApart)];
  const int64_t stride = width + kApart;
  const uint32_t* in[kBlock];
  for (int64_t w = 0; w < width; w += kBlock) {
    const int64_t some = std::min(kBlock, width - w);
    for (int64_t i = 0; i < some; ++i) in[i] = reinterpret_cast<const uint32_t*>(columns + (w + i) * size);
    transpose(in, some, size, reinterpret_cast<uint32_t*>(rows + w), stride);
  }
  for (int64_t c = 0; c < count; ++c) {
    float* row = rows + c * stride;
    for (int64_t w = 0; plus && w < width; ++w) row[w] += plus[c * width + w];
    for (int64_t w = 0; w < width; ++w) row[w] *= factors[c];
    narrow(row, width, put(c));
  }
}

// e^x for x ≤ 0, to within 3e-7 of it; 0 below -87, where fp32 ends.
inline float exponential(float x) {
  constexpr float kMagic = 12582912.f;  // 1.5 · 2^23: adding it leaves a whole number in the last bits
  const float shifted = x * 1.44269504f + kMagic;
  const float whole = shifted - kMagic;
  const float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.f;
  const uint32_t bits = std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23);
  return x < -87.f ? 0.f : std::bit_cast<float>(bits);
}

// A softmax's weights down the columns of scores [padded, size], which are overwritten: e^(score - top) in rows from …
// past - 1, 0 in the others. Adds their sums to `sum` [size]; `weights` are packed.
template <typename T>
void weigh(float* scores, int64_t from, int64_t past, int64_t padded, int64_t size, const float* top, float* sum, T* weights) {
  for (int64_t l = 0; l < padded; ++l) {
    float* row = scores + l * size;
    if (l < from || l >= past) {
      std::fill_n(row, size, 0.f);
    } else {
#pragma omp simd
      for (int64_t c = 0; c < size; ++c) sum[c] += row[c] = exponential(row[c] - top[c]);
    }
    if (l % kWord<T> == kWord<T> - 1) {  // a row of words is complete
      const int64_t whole = l + 1 - kWord<T>;
      pack_words(scores + whole * size, size, weights + whole * size);
    }
  }
}

// Memory of one task, cut piece by piece; every piece begins on a cache line.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : memory_(static_cast<char*>(std::aligned_alloc(64, rounded(bytes + 64, 64))), &std::free) {
    if (!memory_) throw std::bad_alloc();
    end_ = bytes + 64;
  }

  template <typename U>
  U* take(int64_t count) {
    U* piece = reinterpret_cast<U*>(memory_.get() + used_);
    used_ += rounded(count * sizeof(U), 64);
    if (used_ > end_) throw std::bad_alloc();
    return piece;
  }

 private:
  std::unique_ptr<char, void (*)(void*)> memory_;
  size_t used_ = 0, end_;
};

// Run tasks 0 … count - 1 on torch's threads; whichever is free takes the next.
template <typename T, typename Work>
void share_out(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < count; task = next++) work(task);
    at::native::cpublas::brgemm_release(kWord<T> == 2);
  });
}

// 0 where `work` ran, 1 where it threw: nothing may be thrown through C.
inline int guarded(const std::function<void()>& work) {
  try {
    work();
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // namespace forethink
