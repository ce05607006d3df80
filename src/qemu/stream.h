// QEMU's migration stream: what is read of one, and how one is written that a QEMU takes for a postcopy source's.
//
//   magic, version | configuration | RAM: start, parts, end | devices | end, description of the devices
//
// The sections of RAM are understood; those of the devices have no lengths, and are kept as they are: all that follows
// the end of RAM. What is parsed comes from another process: nothing is believed before it has been compared with what
// limits it. No system call here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::qemu {

inline constexpr ByteCount kTargetPage{4096};                 ///< the only size of a guest's page that is served
inline constexpr ByteCount kLargestPage = 1_GiB;              ///< of the memory behind a block
inline constexpr std::size_t kMaxBlocks = 512;                ///< of one machine
inline constexpr ByteCount kMaxRam = ByteCount{1ULL << 44U};  ///< of one machine: 16 TiB
inline constexpr ByteCount kMaxDevices = 256_MiB;             ///< state of all devices

/// A block of RAM, by the name that QEMU gives it.
struct RamBlock {
  std::string name;                   ///< 1 to 255 bytes
  ByteCount length;                   ///< a multiple of its page size, not 0
  ByteCount page_size = kTargetPage;  ///< of the memory behind it: so much is placed at once
  bool operator==(const RamBlock&) const = default;
};

/// What of a machine is not RAM.
struct MachineState {
  std::string machine;             ///< the machine type, as QEMU writes it; empty: the stream has no configuration
  std::vector<std::byte> devices;  ///< their sections, as they were
  bool operator==(const MachineState&) const = default;
};

/// Hears what a stream has of RAM. An error ends the parsing.
class StreamSink {
 public:
  virtual ~StreamSink() = default;
  /// Once, before any page.
  virtual Result<void> blocks(std::span<const RamBlock> blocks) = 0;
  /// The contents of one target page; the last one that comes is right. `offset` lies within the block.
  virtual Result<void> page(std::size_t block, ByteOffset offset, std::span<const std::byte> bytes) = 0;
  /// The same of a page whose bytes are all zero.
  virtual Result<void> zero_page(std::size_t block, ByteOffset offset) = 0;
};

/// Reads a precopy stream while it comes.
class StreamParser {
 public:
  explicit StreamParser(StreamSink& sink) : sink_(sink) {}

  /// The next bytes. Errors: protocol (this is no such stream, or damaged), unsupported (a stream that could not be
  /// restored; says what of it and what to change), and the sink's. After an error nothing more can be done.
  Result<void> push(std::span<const std::byte> bytes);
  /// There are no more bytes. Errors: protocol (the stream is cut off).
  Result<MachineState> finish();
  /// Whether blocks may lack in the stream, because their memory is in a file that another QEMU maps.
  [[nodiscard]] bool ignores_shared() const { return ignores_shared_; }

 private:
  enum class Phase : std::uint8_t { header, configuration, section, table, records, footer, devices };
  enum class Step : std::uint8_t { done, more };  // more: too few bytes are here

  Result<Step> step(std::span<const std::byte> bytes, std::size_t& taken);
  Result<Step> header(class ByteReader& in);
  Result<Step> configuration(ByteReader& in);
  Result<Step> section(ByteReader& in);
  Result<Step> start_section(ByteReader& in);
  Result<Step> command(ByteReader& in);
  Result<Step> block(ByteReader& in);
  Result<Step> record(ByteReader& in);
  Result<Step> page_record(ByteReader& in, std::uint64_t offset, std::uint64_t flags);
  Result<Step> footer(ByteReader& in);
  Result<void> choose_block(const std::string& name);

  StreamSink& sink_;
  Phase phase_ = Phase::header;
  std::vector<std::byte> rest_;  // of what came, not parsed yet
  std::optional<std::uint32_t> ram_section_;
  bool ram_ends_ = false;  // with the section at hand
  bool ignores_shared_ = false;
  std::uint64_t table_left_ = 0;  // bytes of RAM whose blocks are not named yet
  std::vector<RamBlock> blocks_;
  std::optional<std::size_t> block_;  // of the last record
  MachineState state_;
};

/// The devices' sections alone, without what a precopy stream ends with. Errors: protocol.
Result<std::vector<std::byte>> cut_description(std::vector<std::byte> devices);

// --- what a source of postcopy sends, in this order: to_start, or to_resume; pages; to_end
// -----------------------------

/// All that comes before the first page: the machine is running when it is through.
std::vector<std::byte> to_start(const MachineState& state, std::span<const RamBlock> blocks);
/// Asks which pages of each block have arrived. For a QEMU whose source is gone.
std::vector<std::byte> to_ask_received(std::span<const RamBlock> blocks);
/// What ends that.
std::vector<std::byte> to_resume();
/// Answered with a reply of the same value, when all that was sent before is done.
std::vector<std::byte> to_ping(std::uint32_t value);
/// All pages are sent.
std::vector<std::byte> to_end();

/// Pages of one block, in one section.
class PageSection {
 public:
  PageSection(std::vector<std::byte>& out, std::string_view block);
  PageSection(const PageSection&) = delete;
  PageSection& operator=(const PageSection&) = delete;
  ~PageSection();
  /// `bytes` is a target page; zeroes take no room.
  void page(ByteOffset offset, std::span<const std::byte> bytes);
  void zero_page(ByteOffset offset);

 private:
  void head(ByteOffset offset, std::uint64_t flag);

  std::vector<std::byte>& out_;
  std::string block_;
  bool first_ = true;
};

}  // namespace uffda::qemu
