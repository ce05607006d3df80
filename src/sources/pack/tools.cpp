#include "sources/pack/tools.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>

#include "base/bytes.h"
#include "base/mutex.h"
#include "os/atomic_file.h"
#include "os/memory.h"
#include "sources/pack/writer.h"

namespace uffda::pack {
namespace {

constexpr std::uint64_t kFramesPerRound = 2048;

struct Unpacker {
  FrameReader reader;
  std::vector<std::byte> contents;
};

using OnFrame = std::function<Result<void>(std::uint64_t number, Unpacker& worker)>;

/// Calls `on_frame` for every frame that is not of zeroes, on all CPUs.
Result<void> for_each_frame(const Chain& chain, const ToolOptions& options, const OnFrame& on_frame) {
  const Index& index = chain.index();
  std::vector<Unpacker> workers;
  workers.reserve(all_cpus());
  for (unsigned i = 0; i < all_cpus(); ++i) {
    workers.push_back({UFFDA_TRY(FrameReader::create(chain)), std::vector<std::byte>(index.frame_size().value)});
  }
  for (std::uint64_t first = 0; first < index.frames(); first += kFramesPerRound) {
    const std::uint64_t count = std::min(kFramesPerRound, index.frames() - first);
    const auto one = [&](std::uint64_t number, unsigned thread) -> Result<void> {
      if (options.cancel != nullptr && *options.cancel) return fail(Errc::cancelled, "interrupted");
      if (index.frame(first + number).kind == FrameKind::zero) return {};
      return on_frame(first + number, workers[thread]);
    };
    UFFDA_TRY_VOID(in_parallel(static_cast<unsigned>(workers.size()), count, one));
    if (options.progress) options.progress(index.range(first + count - 1).end() - ByteOffset{}, index.size());
  }
  return {};
}

/// Writes what is not zero, page by page, in as few calls as there are runs of such pages.
Result<void> write_sparse(int fd, ByteOffset offset, std::span<const std::byte> bytes) {
  const auto page_at = [&](std::size_t at) {
    return bytes.subspan(at, std::min<std::size_t>(kPageSize.value, bytes.size() - at));
  };
  for (std::size_t at = 0; at < bytes.size();) {
    std::size_t end = at;
    while (end < bytes.size() && !all_zero(page_at(end))) end += page_at(end).size();
    if (end != at) UFFDA_TRY_VOID(os::write_at(fd, offset + ByteCount{at}, bytes.subspan(at, end - at)));
    at = end == bytes.size() ? end : end + page_at(end).size();
  }
  return {};
}

}  // namespace

Result<void> unpack(const Chain& chain, const std::string& path, const ToolOptions& options) {
  os::AtomicFile file = UFFDA_TRY(os::AtomicFile::create(path));
  const Index& index = chain.index();
  if (::ftruncate(file.fd(), static_cast<off_t>(index.size().value)) != 0) return fail_errno(errno, path);
  UFFDA_TRY_VOID(for_each_frame(chain, options, [&](std::uint64_t number, Unpacker& worker) -> Result<void> {
    const ByteRange range = index.range(number);
    const auto contents = std::span(worker.contents).first(range.length.value);
    UFFDA_TRY_VOID(worker.reader.read(number, contents));
    return write_sparse(file.fd(), range.start, contents);
  }));
  return file.commit();
}

Result<std::vector<Error>> verify(const Chain& chain, const ToolOptions& options) {
  Mutex mutex;
  std::map<std::uint64_t, Error> found;  // by frame, so that the order is that of the frames
  UFFDA_TRY_VOID(for_each_frame(chain, options, [&](std::uint64_t number, Unpacker& worker) -> Result<void> {
    const auto contents = std::span(worker.contents).first(chain.index().range(number).length.value);
    if (auto read = worker.reader.read(number, contents); !read) {
      const MutexLock lock(mutex);
      if (found.size() < kMaxDamages) found.emplace(number, std::move(read).error());
    }
    return {};
  }));
  std::vector<Error> damages;
  damages.reserve(found.size() + 1);
  for (auto& [number, error] : found) damages.push_back(std::move(error));
  if (auto working_set = read_working_set(chain.packs().front()); !working_set)
    damages.push_back(std::move(working_set).error());
  return damages;
}

}  // namespace uffda::pack
