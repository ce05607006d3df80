#include "qemu/ram_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/bytes.h"

namespace uffda::qemu {

Result<RamFile> RamFile::create(const std::string& directory) {
  os::UniqueFd fd(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!fd) return fail_errno(errno, fmt::format("a temporary file in {}", directory));
  return RamFile(std::move(fd));
}

Result<void> RamFile::blocks(std::span<const RamBlock> blocks) {
  placed_ = place_blocks(blocks);
  came_.assign(placed_.size(), false);
  written_.assign(end_of(placed_).value / kTargetPage.value, false);
  return {};
}

Result<void> RamFile::page(std::size_t block, ByteOffset offset, std::span<const std::byte> bytes) {
  if (all_zero(bytes)) return zero_page(block, offset);
  came_[block] = true;
  const std::uint64_t at = placed_[block].place.value + offset.value;
  written_[at / kTargetPage.value] = true;
  return write(at, bytes);
}

Result<void> RamFile::zero_page(std::size_t block, ByteOffset offset) {
  came_[block] = true;
  const std::uint64_t at = placed_[block].place.value + offset.value;
  if (!written_[at / kTargetPage.value]) return {};
  written_[at / kTargetPage.value] = false;
  static constexpr std::array<std::byte, kTargetPage.value> kZeroes{};
  return write(at, kZeroes);
}

ByteCount RamFile::data() const { return kTargetPage * static_cast<std::uint64_t>(std::ranges::count(written_, true)); }

Result<void> RamFile::finish(const MachineState& state) {
  const ByteRange devices{.start = end_of(placed_), .length = {state.devices.size()}};
  UFFDA_TRY_VOID(write(devices.start.value, state.devices));
  const auto head = UFFDA_TRY(encode_head({.machine = state.machine, .blocks = placed_, .devices = devices}));
  UFFDA_TRY_VOID(write(0, head));
  if (::ftruncate(fd_.get(), static_cast<off_t>(devices.end().value)) != 0) return fail_errno(errno, "ftruncate");
  return {};
}

Result<std::unique_ptr<PageSource>> RamFile::open() const {
  return open_source(fmt::format("file:/proc/self/fd/{}", fd_.get()));
}

Result<void> RamFile::write(std::uint64_t at, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return fail_errno(errno, "the image of the machine");
    at += static_cast<std::uint64_t>(done);
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
  return {};
}

}  // namespace uffda::qemu
