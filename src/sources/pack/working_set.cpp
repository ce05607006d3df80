// The working set of a pack that exists already: a new file with the frames of the old one.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "os/atomic_file.h"
#include "os/memory.h"
#include "sources/pack/open.h"
#include "sources/pack/writer.h"

namespace uffda::pack {
namespace {

/// In the kernel, and without copying where the file system shares extents.
Result<void> copy_range(int from, int to, ByteRange range) {
  std::vector<std::byte> buffer;
  for (ByteOffset at = range.start; at < range.end();) {
    auto in = static_cast<off_t>(at.value);
    auto out = in;
    const ssize_t done = ::copy_file_range(from, &in, to, &out, (range.end() - at).value, 0);
    if (done > 0) {
      at = at + ByteCount{static_cast<std::uint64_t>(done)};
      continue;
    }
    if (done == 0) return fail(Errc::io, "the file shrank while it was copied");
    if (errno == EINTR) continue;
    // Not between these file systems: by hand.
    buffer.resize(std::min<std::uint64_t>((range.end() - at).value, std::uint64_t{1} << 20U));
    UFFDA_TRY_VOID(os::read_at(from, at, buffer));
    UFFDA_TRY_VOID(os::write_at(to, at, buffer));
    at = at + ByteCount{buffer.size()};
  }
  return {};
}

}  // namespace

Result<void> replace_working_set(const std::string& path, std::span<const std::byte> bytes) {
  if (bytes.size() > kMaxWorkingSet.value)
    return fail(Errc::invalid_argument, path + ": a working set has at most 256 MiB");
  const Pack pack = UFFDA_TRY(open_top(path));
  const os::UniqueFd old(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!old) return fail_errno(errno, path);
  os::AtomicFile file = UFFDA_TRY(os::AtomicFile::create(path));
  Header header = pack.header;
  const ByteOffset start = header.working_set.range.start;
  header.working_set = {.range = {start, {bytes.size()}}, .checksum = checksum_of(bytes)};
  header.file_size = header.working_set.range.end() - ByteOffset{};
  const ByteOffset frames{kHeaderBytes};
  if (auto copied = copy_range(old.get(), file.fd(), {frames, start - frames}); !copied)
    return std::unexpected(copied.error().within(path));
  UFFDA_TRY_VOID(os::write_at(file.fd(), start, bytes));
  UFFDA_TRY_VOID(os::write_at(file.fd(), {0}, encode_header(header)));
  return file.commit();
}

}  // namespace uffda::pack
