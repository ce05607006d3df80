// An image under construction, in a file without a name: pages come in any order, and the last one is right.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "os/fd.h"
#include "qemu/image.h"
#include "qemu/stream.h"
#include "uffda/page_source.h"

namespace uffda::qemu {

class RamFile final : public StreamSink {
 public:
  /// In that directory; it is gone when this and all sources of it are. Errors: those of the file system.
  static Result<RamFile> create(const std::string& directory);

  Result<void> blocks(std::span<const RamBlock> blocks) override;
  Result<void> page(std::size_t block, ByteOffset offset, std::span<const std::byte> bytes) override;
  Result<void> zero_page(std::size_t block, ByteOffset offset) override;

  /// In the order of the stream; their page sizes may be put right before finish().
  [[nodiscard]] std::vector<PlacedBlock>& placed() { return placed_; }
  /// Whether a page of that block came.
  [[nodiscard]] bool came(std::size_t block) const { return came_[block]; }
  [[nodiscard]] ByteCount data() const;
  /// Adds head and devices. Errors: unsupported, and those of the file system.
  Result<void> finish(const MachineState& state);
  /// Errors: as open_source.
  [[nodiscard]] Result<std::unique_ptr<PageSource>> open() const;

 private:
  explicit RamFile(os::UniqueFd fd) : fd_(std::move(fd)) {}
  Result<void> write(std::uint64_t at, std::span<const std::byte> bytes);

  os::UniqueFd fd_;
  std::vector<PlacedBlock> placed_;
  std::vector<bool> came_;
  std::vector<bool> written_;  // pages of the file that hold data
};

}  // namespace uffda::qemu
