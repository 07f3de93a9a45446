// Attention over a prefix tree, forward and backward; tree_attention.py has the method and the reference.
//
// A task is one key-value head of one tile. Scores are computed with keys as rows and queries as columns, so that a
// softmax goes down the columns, sixteen side by side, and its weights come out packed for the next product. Weights
// are made again in the backward pass from each query's logarithm of the sum. Gradients of keys and values are summed
// by a fixed cut of the tiles into parts, whatever the number of threads: same bits on one and on many.
#include <vector>

#include "products.h"

namespace forethink {
namespace {

constexpr int64_t kParts = 8;  // of a head's tiles, each with sums of its own

struct Tree {
  int64_t kv, rep, tokens, width, value_width;  // query [kv, rep, N, width], key [kv, N, width], value [kv, N, …]
  int64_t tiles, window;                        // window 0: none
  float scale;
  const int64_t *first, *past;                  // [tiles], queries of a tile
  const int64_t *runs, *run_begin, *run_past;   // runs[t] … runs[t + 1] - 1 are a tile's half-open ranges of keys
  const int64_t *ends, *positions;              // [N]; token i sees token j where j ≤ i < ends[j]
};

template <typename T>
struct Inputs {
  const T *query, *key, *value;
};

// One tile of one head: its keys gathered, and its queries in blocks of columns.
template <typename T>
class Task {
 public:
  Task(const Tree& tree, const Inputs<T>& in, int64_t head, int64_t tile)
      : t(tree), in(in), head(head), first(tree.first[tile]), queries(tree.past[tile] - first) {
    for (int64_t run = t.runs[tile]; run < t.runs[tile + 1]; ++run) {
      for (int64_t j = t.run_begin[run]; j < t.run_past[run]; ++j) keys.push_back(j);
    }
    count = keys.size();
    padded = rounded(count, kBlock);
    columns = t.rep * queries;
    for (int64_t i = first; i < first + queries; ++i) latest = std::max(latest, t.positions[i]);
    for (int64_t j : keys) {
      const bool all = j <= first && t.ends[j] >= first + queries && (!t.window || latest - t.positions[j] < t.window);
      seen_by_all.push_back(all);
    }
  }

  // The part of a column's place in [rep, N]: row `c` of the tile is query `c % queries` of head `c / queries`.
  int64_t row(int64_t c) const { return (head * t.rep + c / queries) * t.tokens + first + c % queries; }

  // Rows of keys or values, zero behind the last.
  void gather(const T* from, int64_t width, T* out) const {
    from += head * t.tokens * width;
    for (int64_t l = 0; l < count; ++l) std::memcpy(out + l * width, from + keys[l] * width, width * sizeof(T));
    std::memset(static_cast<void*>(out + count * width), 0, (padded - count) * width * sizeof(T));
  }

  // Rows that were gathered, as blocks [padded / kBlock][width][kBlock].
  void transpose_gathered(const T* rows, int64_t width, T* out) const {
    for (int64_t l = 0; l < padded; l += kBlock) transpose_block(rows + l * width, width, out + l * width);
  }

  // Scaled scores [padded, size] of columns c0 … c0 + n - 1 (n ≤ size), hidden ones kHidden; `packed` are the queries.
  void scores(const T* keys_in, const T* packed, int64_t c0, int64_t n, int64_t size, float* out) const {
    int32_t index[kBlock], position[kBlock];
    for (int64_t c = 0; c < size; ++c) {  // columns that lack see what the tile's first query sees
      const int64_t i = first + (c < n ? (c0 + c) % queries : 0);
      index[c] = static_cast<int32_t>(i);
      position[c] = static_cast<int32_t>(t.positions[i]);
    }
    for (int64_t l = 0; l < padded; l += kBlock) {
      multiply(kBlock, size, t.width, keys_in + l * t.width, t.width, packed, out + l * size, size, false);
    }
    const auto window = static_cast<int32_t>(t.window ? t.window : INT32_MAX);
    for (int64_t l = 0; l < count; ++l) {
      float* row = out + l * size;
      if (seen_by_all[l]) {
#pragma omp simd
        for (int64_t c = 0; c < size; ++c) row[c] *= t.scale;
        continue;
      }
      const auto j = static_cast<int32_t>(keys[l]), end = static_cast<int32_t>(t.ends[keys[l]]);
      const auto at = static_cast<int32_t>(t.positions[keys[l]]);
#pragma omp simd
      for (int64_t c = 0; c < size; ++c) {
        const uint32_t hidden = -static_cast<uint32_t>((j > index[c]) | (index[c] >= end) | (position[c] - at >= window));
        const uint32_t score = std::bit_cast<uint32_t>(row[c] * t.scale);  // chosen by bits: then it is vectorised
        row[c] = std::bit_cast<float>((score & ~hidden) | (std::bit_cast<uint32_t>(kHidden) & hidden));
      }
    }
  }

  // Pointers to the columns' rows in a tensor [kv, rep, N, width].
  void point(const T* tensor, int64_t width, int64_t c0, int64_t n, const T** rows) const {
    for (int64_t c = 0; c < n; ++c) rows[c] = tensor + row(c0 + c) * width;
  }

  const Tree& t;
  const Inputs<T>& in;
  int64_t head, first, queries, count = 0, padded = 0, columns = 0, latest = 0;
  std::vector<int64_t> keys;
  std::vector<char> seen_by_all;
};

template <typename T>
void forward_task(const Task<T>& task, T* out, float* logsum) {
  const Tree& t = task.t;
  Scratch scratch(task.padded * (t.width + t.value_width * 2 + kBlock) * sizeof(T) + kBlock * t.width * sizeof(T) +
                  (task.padded + t.value_width) * kBlock * sizeof(float) + 4096);
  T* keys = scratch.take<T>(task.padded * t.width);
  T* values = scratch.take<T>(task.padded * t.value_width);
  T* values_t = scratch.take<T>(task.padded * t.value_width);
  T* weights = scratch.take<T>(task.padded * kBlock);
  T* packed = scratch.take<T>(kBlock * t.width);
  float* scores = scratch.take<float>(task.padded * kBlock);
  float* result = scratch.take<float>(t.value_width * kBlock);
  task.gather(task.in.key, t.width, keys);
  task.gather(task.in.value, t.value_width, values);
  task.transpose_gathered(values, t.value_width, values_t);
  const T* rows[kBlock];
  float top[kBlock], sum[kBlock];
  for (int64_t c0 = 0; c0 < task.columns; c0 += kBlock) {
    const int64_t n = std::min(kBlock, task.columns - c0), size = rounded(n, 16);
    task.point(task.in.query, t.width, c0, n, rows);
    pack_columns(rows, n, t.width, size, packed);
    task.scores(keys, packed, c0, n, size, scores);
    std::fill_n(top, size, kHidden);
    std::fill_n(sum, size, 0.f);
    for (int64_t l = 0; l < task.count; ++l) {
      const float* row = scores + l * size;
#pragma omp simd
      for (int64_t c = 0; c < size; ++c) top[c] = std::max(top[c], row[c]);
    }
    weigh(scores, 0, task.count, task.padded, size, top, sum, weights);
    for (int64_t l = 0; l < task.padded; l += kBlock) {
      multiply(t.value_width, size, kBlock, values_t + l * t.value_width, kBlock, weights + l * size, result, size, l > 0);
    }
    for (int64_t c = 0; c < n; ++c) {
      logsum[task.row(c0 + c)] = top[c] + std::log(sum[c]);
      sum[c] = 1.f / sum[c];
    }
    write_columns<T>(result, t.value_width, size, n, sum, nullptr, [&](int64_t c) { return out + task.row(c0 + c) * t.value_width; });
  }
}

template <typename T>
struct Upstream {
  const T *out, *gradient;  // [kv, rep, N, value width]
  const float* logsum;      // [kv, rep, N]
};

// Adds a tile's share to the gradients of its keys and values, fp32 [N - low, width] from token `low` on.
template <typename T>
void backward_task(const Task<T>& task, const Upstream<T>& up, T* d_query, float* d_key, float* d_value, int64_t low) {
  const Tree& t = task.t;
  Scratch scratch(task.padded * (2 * t.width + t.value_width + 3 * kBlock) * sizeof(T) +
                  2 * kBlock * (t.width + t.value_width) * sizeof(T) +
                  (task.padded * (2 * kBlock + t.width + t.value_width) + t.width * kBlock) * sizeof(float) + 8192);
  T* keys = scratch.take<T>(task.padded * t.width);
  T* keys_t = scratch.take<T>(task.padded * t.width);
  T* values = scratch.take<T>(task.padded * t.value_width);
  T* weights = scratch.take<T>(task.padded * kBlock);       // rows
  T* slopes = scratch.take<T>(task.padded * kBlock);        // gradients of the scores, rows
  T* slopes_p = scratch.take<T>(task.padded * kBlock);      // the same, packed
  T* query_c = scratch.take<T>(kBlock * t.width);           // packed, queries as columns
  T* query_r = scratch.take<T>(kBlock * t.width);           // packed, queries as rows
  T* gradient_c = scratch.take<T>(kBlock * t.value_width);
  T* gradient_r = scratch.take<T>(kBlock * t.value_width);
  float* scores = scratch.take<float>(task.padded * kBlock);
  float* d_weights = scratch.take<float>(task.padded * kBlock);
  float* sum_key = scratch.take<float>(task.padded * t.width);
  float* sum_value = scratch.take<float>(task.padded * t.value_width);
  float* result = scratch.take<float>(t.width * kBlock);
  task.gather(task.in.key, t.width, keys);
  task.transpose_gathered(keys, t.width, keys_t);
  task.gather(task.in.value, t.value_width, values);
  const T *rows[kBlock], *upper[kBlock];
  float logsum[kBlock] = {}, inner[kBlock] = {}, scales[kBlock];
  std::fill_n(scales, kBlock, t.scale);
  for (int64_t c0 = 0; c0 < task.columns; c0 += kBlock) {
    const int64_t n = std::min(kBlock, task.columns - c0), size = rounded(n, 16);
    task.point(task.in.query, t.width, c0, n, rows);
    task.point(up.gradient, t.value_width, c0, n, upper);
    for (int64_t c = 0; c < size; ++c) {
      logsum[c] = c < n ? up.logsum[task.row(c0 + c)] : 0.f;
      inner[c] = 0.f;  // of the upstream gradient with the output
      if (c < n) inner[c] = inner_product(up.out + task.row(c0 + c) * t.value_width, upper[c], t.value_width);
    }
    pack_columns(rows, n, t.width, size, query_c);
    pack_rows(rows, n, t.width, size, query_r);
    pack_columns(upper, n, t.value_width, size, gradient_c);
    pack_rows(upper, n, t.value_width, size, gradient_r);
    task.scores(keys, query_c, c0, n, size, scores);
    for (int64_t l = 0; l < task.padded; l += kBlock) {
      multiply(kBlock, size, t.value_width, values + l * t.value_width, t.value_width, gradient_c, d_weights + l * size,
               size, false);
    }
    for (int64_t l = 0; l < task.padded; l += kWord<T>) {
      for (int64_t k = l; k < l + kWord<T>; ++k) {
        float *weight = scores + k * size, *slope = d_weights + k * size;
        if (k >= task.count) {
          std::fill_n(weight, size, 0.f);
          std::fill_n(slope, size, 0.f);
        } else {
#pragma omp simd
          for (int64_t c = 0; c < size; ++c) {
            const float w = exponential(std::min(weight[c] - logsum[c], 0.f));  // rounding may leave it above 0
            slope[c] = w * (slope[c] - inner[c]);
            weight[c] = w;
          }
        }
        narrow(weight, size, weights + k * size);
        narrow(slope, size, slopes + k * size);
      }
      if constexpr (kWord<T> == 2) pack_words(d_weights + l * size, size, slopes_p + l * size);
    }
    const T* packed = kWord<T> == 2 ? slopes_p : slopes;
    for (int64_t l = 0; l < task.padded; l += kBlock) {
      multiply(kBlock, t.value_width, size, weights + l * size, size, gradient_r, sum_value + l * t.value_width,
               t.value_width, c0 > 0);
      multiply(kBlock, t.width, size, slopes + l * size, size, query_r, sum_key + l * t.width, t.width, c0 > 0);
      multiply(t.width, size, kBlock, keys_t + l * t.width, kBlock, packed + l * size, result, size, l > 0);
    }
    write_columns<T>(result, t.width, size, n, scales, nullptr, [&](int64_t c) { return d_query + task.row(c0 + c) * t.width; });
  }
  for (int64_t l = 0; l < task.count; ++l) {
    float* of_key = d_key + (task.keys[l] - low) * t.width;
    float* of_value = d_value + (task.keys[l] - low) * t.value_width;
    for (int64_t w = 0; w < t.width; ++w) of_key[w] += sum_key[l * t.width + w] * t.scale;
    for (int64_t w = 0; w < t.value_width; ++w) of_value[w] += sum_value[l * t.value_width + w];
  }
}

template <typename T>
void forward(const Tree& t, const Inputs<T>& in, T* out, float* logsum) {
  share_out<T>(t.kv * t.tiles, [&](int64_t task) {
    forward_task(Task<T>(t, in, task / t.tiles, task % t.tiles), out, logsum);
  });
}

// Neighbouring tiles whose shares of the keys' gradients are summed together, and the tokens these touch.
struct Part {
  int64_t first, past, low, high;
  std::vector<float> d_key, d_value;
};

std::vector<Part> parts_of(const Tree& t) {
  std::vector<int64_t> work{0};
  for (int64_t tile = 0; tile < t.tiles; ++tile) {
    int64_t keys = 0;
    for (int64_t run = t.runs[tile]; run < t.runs[tile + 1]; ++run) keys += t.run_past[run] - t.run_begin[run];
    work.push_back(work.back() + keys * (t.past[tile] - t.first[tile]));
  }
  std::vector<Part> parts;
  for (int64_t tile = 0; tile < t.tiles;) {
    const int64_t goal = work.back() * static_cast<int64_t>(parts.size() + 1) / kParts;
    Part part{tile, tile + 1, t.tokens, 0, {}, {}};
    while (part.past < t.tiles && work[part.past] < goal) ++part.past;
    for (tile = part.first; tile < part.past; ++tile) {
      for (int64_t run = t.runs[tile]; run < t.runs[tile + 1]; ++run) {
        part.low = std::min(part.low, t.run_begin[run]);
        part.high = std::max(part.high, t.run_past[run]);
      }
    }
    parts.push_back(part);
  }
  return parts;
}

template <typename T>
void backward(const Tree& t, const Inputs<T>& in, const Upstream<T>& up, T* d_query, T* d_key, T* d_value) {
  const std::vector<Part> of_head = parts_of(t);
  const int64_t each = of_head.size();
  std::vector<Part> parts;
  for (int64_t head = 0; head < t.kv; ++head) parts.insert(parts.end(), of_head.begin(), of_head.end());
  share_out<T>(parts.size(), [&](int64_t task) {
    Part& part = parts[task];
    part.d_key.assign((part.high - part.low) * t.width, 0.f);
    part.d_value.assign((part.high - part.low) * t.value_width, 0.f);
    for (int64_t tile = part.first; tile < part.past; ++tile) {
      backward_task(Task<T>(t, in, task / each, tile), up, d_query, part.d_key.data(), part.d_value.data(), part.low);
    }
  });
  const auto sum = [&](int64_t head, int64_t token, int64_t width, std::vector<float> Part::*own, T* out) {
    float row[kWidest] = {};
    for (int64_t p = head * each; p < (head + 1) * each; ++p) {
      const Part& part = parts[p];
      if (token < part.low || token >= part.high) continue;
      const float* add = (part.*own).data() + (token - part.low) * width;
      for (int64_t w = 0; w < width; ++w) row[w] += add[w];
    }
    narrow(row, width, out + (head * t.tokens + token) * width);
  };
  at::parallel_for(0, t.kv * t.tokens, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sum(i / t.tokens, i % t.tokens, t.width, &Part::d_key, d_key);
      sum(i / t.tokens, i % t.tokens, t.value_width, &Part::d_value, d_value);
    }
  });
}

}  // namespace
}  // namespace forethink

using namespace forethink;

// All tensors contiguous and of one type, bf16 (`half` 1) or fp32, widths multiples of 16 and at most 256; see Tree
// and Upstream for shapes. 0, or 1 where it cannot be done.
extern "C" int forethink_tree_forward(int half, const Tree* tree, const void* query, const void* key, const void* value,
                                      void* out, float* logsum) {
  const auto run = [&]<typename T>(T* result) {
    const Inputs<T> in{static_cast<const T*>(query), static_cast<const T*>(key), static_cast<const T*>(value)};
    forward(*tree, in, result, logsum);
  };
  return guarded([&] { half ? run(static_cast<at::BFloat16*>(out)) : run(static_cast<float*>(out)); });
}

extern "C" int forethink_tree_backward(int half, const Tree* tree, const void* query, const void* key,
                                       const void* value, const void* out, const void* gradient, const float* logsum,
                                       void* d_query, void* d_key, void* d_value) {
  const auto run = [&]<typename T>(T* result) {
    const Inputs<T> in{static_cast<const T*>(query), static_cast<const T*>(key), static_cast<const T*>(value)};
    const Upstream<T> up{static_cast<const T*>(out), static_cast<const T*>(gradient), logsum};
    backward(*tree, in, up, result, static_cast<T*>(d_key), static_cast<T*>(d_value));
  };
  return guarded([&] { half ? run(static_cast<at::BFloat16*>(d_query)) : run(static_cast<float*>(d_query)); });
}

// Whether this machine multiplies packed bf16 (1), fp32 (2), or both (3).
extern "C" int forethink_multiplies() {
  const auto works = [&]<typename T>(T one) {
    T a[256], b[256];
    float c[256];
    std::fill_n(a, 256, one);
    std::fill_n(b, 256, one);
    return guarded([&] { multiply<T>(16, 16, 16, a, 16, b, c, 16, false); }) == 0 && c[255] == 16.f;
  };
  const bool half = at::native::cpublas::could_pack(at::kBFloat16) && works(at::BFloat16(1.f));
  return (half ? 1 : 0) + (works(1.f) ? 2 : 0);
}
