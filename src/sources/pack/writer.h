// Makes a pack from any source.
//
// The contents go through in batches, three of them at a time, in rounds: the one before is written, this one is
// compressed, the next one is read and checksummed; all of that on all CPUs. Between two rounds one thread decides, in
// the order of the frames, what each frame of the next batch is. So the bytes of a pack follow from the contents and
// the options alone, whatever the number of threads and however they are scheduled.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "sources/pack/chain.h"
#include "uffda/page_source.h"

namespace uffda::pack {

struct WriterProgress {
  ByteCount done;  ///< of the contents
  ByteCount size;
  ByteCount written;  ///< of the pack
};

struct WriterOptions {
  ByteCount frame_size = kDefaultFrame;
  int level = 3;
  unsigned threads = 0;  ///< 0: one for each CPU
  Metadata metadata;
  const Chain* base = nullptr;                          ///< stores only what is not in there
  std::vector<std::byte> working_set;                   ///< as in docs/formats/working-set.md; may be empty
  std::string base_name;                                ///< of the base's file; readers look for it beside the new one
  std::function<void(const WriterProgress&)> progress;  ///< in the calling thread, from time to time; may be null
  const std::atomic<bool>* cancel = nullptr;            ///< set: give up; may be null
};

/// What frames there are of one kind.
struct KindCount {
  std::uint64_t frames = 0;
  ByteCount contents;
  ByteCount stored;
};

struct Summary {
  std::array<KindCount, 5> kinds{};  ///< by FrameKind
  ByteCount size;
  ByteCount file_size;

  [[nodiscard]] const KindCount& of(FrameKind kind) const { return kinds.at(static_cast<std::size_t>(kind)); }
};

Summary summary_of(const Index& index, ByteCount file_size);

/// Reads `input` and makes the file `path`, which appears when it is whole; on an error nothing of it stays.
/// Errors: invalid_argument (an option, contents too large for frames of this size, `path` is the base), io (the
/// source, or what is written), no_memory (no room), cancelled.
Result<Summary> write_pack(PageSource& input, const std::string& path, const WriterOptions& options);

/// Puts `bytes` in the place of the working set of the pack file at `path`, which is replaced as a whole; its identity
/// stays, so that packs which build on it do not notice. Errors: as open_pack; invalid_argument (too much), io.
Result<void> replace_working_set(const std::string& path, std::span<const std::byte> bytes);

/// The number of threads for work on all CPUs.
unsigned all_cpus();

/// Calls `work(number, thread)` for every number below `count`, by `threads` threads, and returns the first error,
/// after which no more are started. `thread` counts from 0. Numbers are handed out in order.
Result<void> in_parallel(unsigned threads, std::uint64_t count,
                         const std::function<Result<void>(std::uint64_t number, unsigned thread)>& work);

}  // namespace uffda::pack
