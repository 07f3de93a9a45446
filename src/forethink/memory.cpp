// Memory of large CPU tensors: a best-fit heap of their own, which joins neighbours that are free and gives nothing back.
//
// glibc keeps freed blocks of more than half a MiB in one list sorted by size and walks it at every allocation and at
// every release. Between the large tensors of a training step lie small objects that live long, so the list grows to
// hundreds of entries, and walking it takes up to a sixth of a step. Here small blocks stay with torch's own allocator,
// and large ones are found by size and by address in trees.
#include <pthread.h>
#include <sys/mman.h>

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace {

constexpr size_t kLeast = size_t{16} << 10;  // bytes from which a block is ours
constexpr size_t kGrowth = size_t{64} << 20; // bytes taken from the system at once, at least
constexpr size_t kPage = size_t{2} << 20;    // of a large page
constexpr size_t kLine = 64;                 // of a cache line

struct Block {
  size_t size;
  bool free;
};

class Heap final : public c10::Allocator {
 public:
  explicit Heap(c10::Allocator* small) : small_(small) {}

  c10::DataPtr allocate(size_t n) override {
    if (n < kLeast) return small_->allocate(n);
    void* block = take(n);
    c10::profiledCPUMemoryReporter().New(block, n);
    return {block, block, &Heap::release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &Heap::release; }

  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  size_t held() {
    std::lock_guard<std::mutex> guard(mutex_);
    return held_;
  }

  static void lock() { instance->mutex_.lock(); }
  static void unlock() { instance->mutex_.unlock(); }

  static Heap* instance;

 private:
  using Blocks = std::map<char*, Block>;

  void* take(size_t n) {
    // A line more than asked: else all blocks begin at the same place of a page, and so of the processor's caches.
    const size_t size = (n + 2 * kLine - 1) / kLine * kLine;
    std::lock_guard<std::mutex> guard(mutex_);
    auto fit = free_.lower_bound({size, nullptr});
    if (fit == free_.end()) {
      grow(size);
      fit = free_.lower_bound({size, nullptr});
    }
    auto at = blocks_.find(fit->second);
    free_.erase(fit);
    const size_t rest = at->second.size - size;
    if (rest >= kLeast) {
      blocks_.emplace_hint(std::next(at), at->first + size, Block{rest, true});
      free_.emplace(rest, at->first + size);
      at->second.size = size;
    }
    at->second.free = false;
    return at->first;
  }

  void grow(size_t size) {
    const size_t taken = (std::max(size, kGrowth) + kPage - 1) / kPage * kPage;
    void* fresh = mmap(nullptr, taken, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, fresh != MAP_FAILED, "not enough memory: you tried to allocate ", size, " bytes.");
    madvise(fresh, taken, MADV_HUGEPAGE);
    held_ += taken;
    put(blocks_.emplace(static_cast<char*>(fresh), Block{taken, true}).first);
  }

  // Into the free ones, joined with free neighbours.
  void put(Blocks::iterator at) {
    at->second.free = true;
    const auto after = std::next(at);
    if (after != blocks_.end() && after->second.free && at->first + at->second.size == after->first) {
      free_.erase({after->second.size, after->first});
      at->second.size += after->second.size;
      blocks_.erase(after);
    }
    if (at != blocks_.begin()) {
      const auto before = std::prev(at);
      if (before->second.free && before->first + before->second.size == at->first) {
        free_.erase({before->second.size, before->first});
        before->second.size += at->second.size;
        blocks_.erase(at);
        at = before;
      }
    }
    free_.emplace(at->second.size, at->first);
  }

  // Blocks of another allocator come here too: those made before this one was set, and small ones.
  static void release(void* block) {
    if (block == nullptr) return;
    {
      std::lock_guard<std::mutex> guard(instance->mutex_);
      const auto at = instance->blocks_.find(static_cast<char*>(block));
      if (at != instance->blocks_.end()) {
        c10::profiledCPUMemoryReporter().Delete(block);
        instance->put(at);
        return;
      }
    }
    instance->small_->raw_deallocate(block);
  }

  c10::Allocator* small_;
  std::mutex mutex_;
  Blocks blocks_;                            // by address; neighbours are never both free
  std::set<std::pair<size_t, char*>> free_;  // by size, then address
  size_t held_ = 0;
};

Heap* Heap::instance = nullptr;

}  // namespace

// From here on torch takes its large CPU tensors from this heap. Bytes that it holds now.
extern "C" int64_t forethink_keep_memory() {
  if (Heap::instance == nullptr) {
    Heap::instance = new Heap(c10::GetCPUAllocator());  // lives as long as the process: tensors may outlive main
    pthread_atfork(&Heap::lock, &Heap::unlock, &Heap::unlock);  // no child begins inside another thread's call
    c10::SetCPUAllocator(Heap::instance);
  }
  return static_cast<int64_t>(Heap::instance->held());
}
