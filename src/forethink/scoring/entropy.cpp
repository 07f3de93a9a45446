// A row of logits in two passes: its k highest values, the sum of its exponentials and that of e·(x - m); entropy.py
// makes every figure of them and has the reference.
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "products.h"

namespace forethink {
namespace {

constexpr int64_t kColumns = 64;  // of a block, of which the highest is known
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kLeast = -std::numeric_limits<float>::infinity();
constexpr float kFloor = -1e9f;   // a logit below the maximum that has no probability; finite, so that 0 · x is 0

template <typename T>
class Rows {
 public:
  Rows(int64_t columns, int64_t k) : columns(columns), k(k), blocks((columns + kColumns - 1) / kColumns), maxima(blocks) {}

  void work(const T* row, float* values, int64_t* ids, float* total, float* moment) {
    highest(row, values, ids);
    const float top = values[0];
    float sum = 0.f, product = 0.f, ordered = 0.f;
#pragma omp simd reduction(+ : sum, product, ordered)
    for (int64_t i = 0; i < columns; ++i) {
      const float x = widened(row[i]) - top;
      const float e = exponential(x);
      sum += e;
      product += e * (x > kFloor ? x : kFloor);
      ordered += x <= 0.f ? 1.f : 0.f;
    }
    const bool lost = ordered != static_cast<float>(columns);  // NaN or +inf somewhere, or -inf everywhere
    *total = lost ? kNaN : sum;
    *moment = lost ? kNaN : product;
    if (lost) std::fill_n(values, k, kNaN);
  }

 private:
  // The k highest, of equal ones that of the lowest id first. They lie in the blocks whose highest are the highest.
  void highest(const T* row, float* values, int64_t* ids) {
    std::fill(maxima.begin(), maxima.end(), kLeast);
    for (int64_t i = 0; i < columns; i += blocks) {  // block j holds the columns j, j + blocks, …
      const int64_t some = std::min(blocks, columns - i);
      float* most = maxima.data();
#pragma omp simd
      for (int64_t j = 0; j < some; ++j) {
        const float x = widened(row[i + j]);
        most[j] = x > most[j] ? x : most[j];
      }
    }
    sorted = maxima;
    const int64_t last = std::min(k, blocks) - 1;
    std::nth_element(sorted.begin(), sorted.begin() + last, sorted.end(), std::greater<>());
    const float least = blocks < k ? kLeast : sorted[last];
    found.clear();
    for (int64_t j = 0; j < blocks; ++j) {
      if (!(maxima[j] >= least)) continue;
      for (int64_t i = j; i < columns; i += blocks) {
        const float x = widened(row[i]);
        if (x >= least) found.emplace_back(x, i);
      }
    }
    const auto before = [](const auto& a, const auto& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); };
    while (static_cast<int64_t>(found.size()) < k) found.emplace_back(kLeast, 0);  // where some are NaN
    std::partial_sort(found.begin(), found.begin() + k, found.end(), before);
    for (int64_t i = 0; i < k; ++i) std::tie(values[i], ids[i]) = found[i];
  }

  const int64_t columns, k, blocks;
  std::vector<float> maxima, sorted;
  std::vector<std::pair<float, int64_t>> found;
};

}  // namespace
}  // namespace forethink

using namespace forethink;

// Logits [rows, columns] of a row stride, bf16 (`half` 1) or fp32; k ≤ columns. values and ids [rows, k], total and
// moment [rows]. 0, or 1 on failure.
extern "C" int forethink_row_sums(int half, const void* logits, int64_t rows, int64_t columns, int64_t stride, int64_t k,
                                  float* values, int64_t* ids, float* total, float* moment) {
  const auto run = [&]<typename T>(const T* from) {
    at::parallel_for(0, rows, 4, [&](int64_t begin, int64_t end) {
      Rows<T> work(columns, k);
      for (int64_t i = begin; i < end; ++i) work.work(from + i * stride, values + i * k, ids + i * k, total + i, moment + i);
    });
  };
  return guarded([&] { half ? run(static_cast<const at::BFloat16*>(logits)) : run(static_cast<const float*>(logits)); });
}
