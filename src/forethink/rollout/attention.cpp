// One decoding step's attention of groups of completions to one copy of their prompt and each to its own tokens;
// attention.py has the method and the reference.
//
// A task is one key-value head of one group. Its queries are columns and the prompt's keys rows, as in
// tree_attention.cpp; own tokens are few, and differ from one query's completion to the next: they are met one by one.
#include <vector>

#include "products.h"

namespace forethink {
namespace {

struct Groups {
  int64_t groups, kv, rep, width, value_width;
  int64_t places, blocks, capacity;  // of a prompt's keys, of its values, of a completion's own tokens
  int64_t window;                    // 0: none
  float scale;
  const int64_t *lengths, *steps;    // [groups]: a prompt's tokens, and a row's own before the newest
  const int64_t* first;              // [groups + 1], where each group's rows begin
};

template <typename T>
struct Inputs {
  const T* query;     // [rows, kv, rep, width]
  const T* prompt_k;  // [groups, kv, places, width]
  const T* prompt_v;  // [groups, kv, blocks, value width, kBlock], zero behind a prompt
  const T* own_k;     // [rows, kv, capacity, width]
  const T* own_v;     // [rows, kv, capacity, value width]
};

template <typename T>
void attend_task(const Groups& g, const Inputs<T>& in, int64_t n, int64_t head, T* out) {
  const int64_t length = g.lengths[n], own = g.steps[n] + 1, now = length + g.steps[n];
  const int64_t oldest = g.window ? std::max<int64_t>(0, now - g.window + 1) : 0;  // the first position that is seen
  const int64_t own_from = std::max<int64_t>(0, oldest - length);
  const int64_t begin = std::min(oldest, length) / kBlock * kBlock, padded = rounded(length - begin, kBlock);
  const int64_t columns = (g.first[n + 1] - g.first[n]) * g.rep;
  Scratch scratch((padded + g.width) * kBlock * sizeof(T) + kBlock * g.width * sizeof(T) +
                  (padded + own + 2 * g.value_width) * kBlock * sizeof(float) + 4096);
  T* weights = scratch.take<T>(padded * kBlock);
  T* packed = scratch.take<T>(kBlock * g.width);
  T* tail = scratch.take<T>(kBlock * g.width);
  float* scores = scratch.take<float>(padded * kBlock);
  float* own_scores = scratch.take<float>(own * kBlock);
  float* result = scratch.take<float>(g.value_width * kBlock);
  float* of_own = scratch.take<float>(g.value_width * kBlock);
  const T* keys = in.prompt_k + (n * g.kv + head) * g.places * g.width;
  const T* values = in.prompt_v + (n * g.kv + head) * g.blocks * kBlock * g.value_width;
  const T* rows[kBlock];
  float top[kBlock], sum[kBlock];
  const auto row_of = [&](int64_t c) { return (g.first[n] + c / g.rep) * g.kv + head; };
  for (int64_t c0 = 0; c0 < columns; c0 += kBlock) {
    const int64_t count = std::min(kBlock, columns - c0), size = rounded(count, 16);
    for (int64_t c = 0; c < count; ++c) rows[c] = in.query + (row_of(c0 + c) * g.rep + (c0 + c) % g.rep) * g.width;
    pack_columns(rows, count, g.width, size, packed);
    std::fill_n(top, size, kHidden);
    std::fill_n(sum, size, 0.f);
    for (int64_t l = begin; l < length; l += kBlock) {
      const T* block = keys + l * g.width;
      if (l + kBlock > length) {  // what lies behind the prompt may not be memory of ours
        std::memcpy(tail, block, (length - l) * g.width * sizeof(T));
        std::memset(static_cast<void*>(tail + (length - l) * g.width), 0, (l + kBlock - length) * g.width * sizeof(T));
        block = tail;
      }
      multiply(kBlock, size, g.width, block, g.width, packed, scores + (l - begin) * size, size, false);
    }
    for (int64_t l = std::max(begin, oldest); l < length; ++l) {
      float* row = scores + (l - begin) * size;
#pragma omp simd
      for (int64_t c = 0; c < size; ++c) {
        row[c] *= g.scale;
        top[c] = std::max(top[c], row[c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      const T* own_keys = in.own_k + row_of(c0 + c) * g.capacity * g.width;
      for (int64_t k = own_from; k < own; ++k) {
        const float score = g.scale * inner_product(rows[c], own_keys + k * g.width, g.width);
        own_scores[c * own + k] = score;
        top[c] = std::max(top[c], score);
      }
    }
    weigh(scores, oldest - begin, length - begin, padded, size, top, sum, weights);
    std::fill_n(result, g.value_width * size, 0.f);
    for (int64_t l = 0; l < padded; l += kBlock) {
      multiply(g.value_width, size, kBlock, values + (begin + l) * g.value_width, kBlock, weights + l * size, result, size,
               l > 0);
    }
    std::fill_n(of_own, g.value_width * count, 0.f);
    for (int64_t c = 0; c < count; ++c) {
      const T* own_values = in.own_v + row_of(c0 + c) * g.capacity * g.value_width;
      for (int64_t k = own_from; k < own; ++k) {
        const float weight = exponential(own_scores[c * own + k] - top[c]);
        sum[c] += weight;
        add_scaled(own_values + k * g.value_width, weight, g.value_width, of_own + c * g.value_width);
      }
      sum[c] = 1.f / sum[c];
    }
    write_columns<T>(result, g.value_width, size, count, sum, of_own, [&](int64_t c) {
      return out + (row_of(c0 + c) * g.rep + (c0 + c) % g.rep) * g.value_width;
    });
  }
}

}  // namespace
}  // namespace forethink

using namespace forethink;

// Tensors contiguous and of one type, bf16 (`half` 1) or fp32; out [rows, kv, rep, value width]. 0, or 1 on failure.
extern "C" int forethink_group_attention(int half, const Groups* groups, const void* query, const void* prompt_k,
                                         const void* prompt_v, const void* own_k, const void* own_v, void* out) {
  const auto run = [&]<typename T>(T* result) {
    const Inputs<T> in{static_cast<const T*>(query), static_cast<const T*>(prompt_k), static_cast<const T*>(prompt_v),
                       static_cast<const T*>(own_k), static_cast<const T*>(own_v)};
    share_out<T>(groups->groups * groups->kv, [&](int64_t task) {
      attend_task(*groups, in, task / groups->kv, task % groups->kv, result);
    });
  };
  return guarded([&] { half ? run(static_cast<at::BFloat16*>(out)) : run(static_cast<float*>(out)); });
}

// A prompt's values [groups, kv, places, value width] as `Inputs` has them.
extern "C" int forethink_pack_values(int half, const Groups* groups, const void* values, void* out) {
  const Groups& g = *groups;
  const auto run = [&]<typename T>(T* result) {
    share_out<T>(g.groups * g.kv, [&](int64_t task) {
      const T* from = static_cast<const T*>(values) + task * g.places * g.value_width;
      std::vector<T> block(kBlock * g.value_width);
      for (int64_t b = 0; b < g.blocks; ++b) {
        const int64_t some = std::clamp<int64_t>(g.lengths[task / g.kv] - b * kBlock, 0, kBlock);
        std::fill(block.begin(), block.end(), T(0.f));
        std::copy_n(from + b * kBlock * g.value_width, some * g.value_width, block.begin());
        transpose_block(block.data(), g.value_width, result + (task * g.blocks + b) * kBlock * g.value_width);
      }
    });
  };
  return guarded([&] { half ? run(static_cast<at::BFloat16*>(out)) : run(static_cast<float*>(out)); });
}
