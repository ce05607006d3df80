#include "qemu/stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/bytes.h"
#include "qemu/bytes.h"
#include "qemu/words.h"

namespace uffda::qemu {
namespace {

constexpr std::size_t kMaxMachine = 255;
constexpr std::uint32_t kMaxCapabilities = 256;

Error unlike(std::string_view what) {
  return Error(Errc::protocol, fmt::format("this is no migration stream of QEMU, or it is damaged: {}", what));
}

Error unrestorable(std::string_view what) {
  return Error(Errc::unsupported, fmt::format("the stream cannot be restored: {}", what));
}

/// What stands in a record that this reader does not know.
std::string_view record_name(std::uint64_t flags) {
  if ((flags & 0x40U) != 0) return "pages are XBZRLE encoded: switch the capability xbzrle off";
  if ((flags & 0x80U) != 0) return "pages go over RDMA: switch that off";
  if ((flags & 0x100U) != 0) return "pages are compressed: switch the capability compress off";
  if ((flags & 0x200U) != 0) return "pages go over several channels: switch the capability multifd off";
  return "it has a record of RAM of an unknown kind";
}

}  // namespace

Result<void> StreamParser::push(std::span<const std::byte> bytes) {
  if (phase_ != Phase::devices) {
    rest_.insert(rest_.end(), bytes.begin(), bytes.end());
    std::size_t taken = 0;
    while (phase_ != Phase::devices && UFFDA_TRY(step(std::span(rest_).subspan(taken), taken)) == Step::done) {
    }
    rest_.erase(rest_.begin(), rest_.begin() + static_cast<std::ptrdiff_t>(taken));
    if (phase_ != Phase::devices) return {};
    state_.devices = std::exchange(rest_, {});
  } else {
    state_.devices.insert(state_.devices.end(), bytes.begin(), bytes.end());
  }
  if (state_.devices.size() > kMaxDevices.value)
    return std::unexpected(unrestorable("its devices have too much state"));
  return {};
}

Result<MachineState> StreamParser::finish() {
  if (phase_ != Phase::devices) return std::unexpected(unlike("it ends too early"));
  state_.devices = UFFDA_TRY(cut_description(std::move(state_.devices)));
  return std::move(state_);
}

Result<StreamParser::Step> StreamParser::step(std::span<const std::byte> bytes, std::size_t& taken) {
  ByteReader in(bytes);
  const auto go = [&]() -> Result<Step> {
    switch (phase_) {
      case Phase::header:
        return header(in);
      case Phase::configuration:
        return configuration(in);
      case Phase::section:
        return section(in);
      case Phase::table:
        return block(in);
      case Phase::records:
        return record(in);
      case Phase::footer:
        return footer(in);
      case Phase::devices:
        break;
    }
    return Step::more;
  };
  const Step result = UFFDA_TRY(go());
  if (result == Step::done) taken += in.taken();
  return result;
}

Result<StreamParser::Step> StreamParser::header(ByteReader& in) {
  const auto magic = in.number<std::uint32_t>();
  const auto version = in.number<std::uint32_t>();
  if (!version) return Step::more;
  if (*magic != kStreamMagic) return std::unexpected(unlike("it does not begin like one"));
  if (*version != kStreamVersion) return std::unexpected(unlike(fmt::format("its version is {}", *version)));
  phase_ = Phase::configuration;
  return Step::done;
}

/// Machine type, and the capabilities that both ends must have.
Result<StreamParser::Step> StreamParser::configuration(ByteReader& in) {
  ByteReader ahead = in;
  const auto mark = ahead.number<std::uint8_t>();
  if (!mark) return Step::more;
  if (*mark == static_cast<std::uint8_t>(Mark::configuration)) {
    (void)in.number<std::uint8_t>();
    const auto length = in.number<std::uint32_t>();
    if (!length) return Step::more;
    if (*length > kMaxMachine || !state_.machine.empty()) return std::unexpected(unlike("its configuration"));
    auto machine = in.text(*length);
    if (!machine) return Step::more;
    state_.machine = *std::move(machine);
    return Step::done;
  }
  if (*mark != static_cast<std::uint8_t>(Mark::subsection)) {
    phase_ = Phase::section;
    return Step::done;
  }
  (void)in.number<std::uint8_t>();
  const auto name = in.name();
  (void)in.number<std::uint32_t>();  // version
  const auto count = in.number<std::uint32_t>();
  if (!count) return Step::more;
  if (*name != "configuration/capabilities" || *count > kMaxCapabilities)
    return std::unexpected(unrestorable(fmt::format("its configuration has '{}'", *name)));
  for (std::uint32_t i = 0; i < *count; ++i) {
    const auto capability = in.name();
    if (!capability) return Step::more;
    if (*capability != "x-ignore-shared")
      return std::unexpected(unrestorable(fmt::format("it needs the capability {}", *capability)));
    ignores_shared_ = true;
  }
  return Step::done;
}

Result<StreamParser::Step> StreamParser::section(ByteReader& in) {
  const auto mark = in.number<std::uint8_t>();
  if (!mark) return Step::more;
  switch (static_cast<Mark>(*mark)) {
    case Mark::start:
      return start_section(in);
    case Mark::part:
    case Mark::last_part: {
      const auto id = in.number<std::uint32_t>();
      if (!id) return Step::more;
      if (!ram_section_ || *id != *ram_section_)
        return std::unexpected(unrestorable(fmt::format("section {} is not RAM", *id)));
      ram_ends_ = static_cast<Mark>(*mark) == Mark::last_part;
      phase_ = Phase::records;
      return Step::done;
    }
    case Mark::command:
      return command(in);
    case Mark::full: {
      const auto id = in.number<std::uint32_t>();
      const auto name = in.name();
      if (!id || !name) return Step::more;
      return std::unexpected(
          unrestorable(fmt::format("the device '{}' comes before RAM; start the machine without it", *name)));
    }
    default:
      return std::unexpected(unlike(fmt::format("a section of kind {} before the end of RAM", *mark)));
  }
}

Result<StreamParser::Step> StreamParser::start_section(ByteReader& in) {
  const auto id = in.number<std::uint32_t>();
  const auto name = in.name();
  (void)in.number<std::uint32_t>();  // which of its kind
  const auto version = in.number<std::uint32_t>();
  if (!name || !version) return Step::more;
  if (*name != "ram") {
    return std::unexpected(
        unrestorable(fmt::format("it has '{}', which is sent page by page like RAM; only RAM can be", *name)));
  }
  if (ram_section_) return std::unexpected(unlike("RAM begins twice"));
  if (*version != kRamVersion) return std::unexpected(unrestorable(fmt::format("its RAM has version {}", *version)));
  ram_section_ = id;
  phase_ = Phase::records;
  return Step::done;
}

/// Newer machine types announce the switch to the destination; everything else changes what the stream is.
Result<StreamParser::Step> StreamParser::command(ByteReader& in) {
  const auto word = in.number<std::uint16_t>();
  const auto length = in.number<std::uint16_t>();
  if (!length) return Step::more;
  if (static_cast<CommandWord>(*word) == CommandWord::switchover_start && *length == 0) return Step::done;
  return std::unexpected(unrestorable(
      fmt::format("it has command {}; switch the capabilities postcopy-ram, return-path and x-colo off", *word)));
}

Result<StreamParser::Step> StreamParser::block(ByteReader& in) {
  auto name = in.name();
  const auto length = in.number<std::uint64_t>();
  if (ignores_shared_) {
    if (!in.number<std::uint64_t>()) return Step::more;  // its place in the guest
  }
  if (!name || !length) return Step::more;
  const bool known = std::ranges::any_of(blocks_, [&](const RamBlock& other) { return other.name == *name; });
  if (name->empty() || known || blocks_.size() == kMaxBlocks) return std::unexpected(unlike("its table of blocks"));
  if (*length == 0 || *length > table_left_ || *length % kTargetPage.value != 0)
    return std::unexpected(unlike(fmt::format("block '{}' has {} bytes", *name, *length)));
  blocks_.push_back({.name = *std::move(name), .length = {*length}});
  table_left_ -= *length;
  if (table_left_ == 0) {
    UFFDA_TRY_VOID(sink_.blocks(blocks_));
    phase_ = Phase::records;
  }
  return Step::done;
}

Result<StreamParser::Step> StreamParser::record(ByteReader& in) {
  const auto word = in.number<std::uint64_t>();
  if (!word) return Step::more;
  const std::uint64_t flags = *word & kRecordFlags;
  const std::uint64_t offset = *word & ~kRecordFlags;
  switch (flags & ~kSameBlock) {
    case kTable:
      if (!blocks_.empty() || offset == 0 || offset > kMaxRam.value)
        return std::unexpected(unlike(fmt::format("{} bytes of RAM", offset)));
      table_left_ = offset;
      phase_ = Phase::table;
      return Step::done;
    case kEndOfRecords:
      phase_ = Phase::footer;
      return Step::done;
    case kPage:
    case kZeroPage:
      return page_record(in, offset, flags);
    default:
      return std::unexpected(unrestorable(record_name(flags)));
  }
}

Result<StreamParser::Step> StreamParser::page_record(ByteReader& in, std::uint64_t offset, std::uint64_t flags) {
  std::optional<std::string> name;
  if ((flags & kSameBlock) == 0) {
    name = in.name();
    if (!name) return Step::more;
  }
  const bool is_zero = (flags & kZeroPage) != 0;
  const auto bytes = in.take(is_zero ? 1 : kTargetPage.value);
  if (!bytes) return Step::more;
  if (name) UFFDA_TRY_VOID(choose_block(*name));
  if (!block_) return std::unexpected(unlike("a page of no block"));
  if (offset >= blocks_[*block_].length.value) return std::unexpected(unlike("a page outside of its block"));
  if (!is_zero) {
    UFFDA_TRY_VOID(sink_.page(*block_, {offset}, *bytes));
  } else if (bytes->front() == std::byte{0}) {
    UFFDA_TRY_VOID(sink_.zero_page(*block_, {offset}));
  } else {
    std::array<std::byte, kTargetPage.value> page{};
    page.fill(bytes->front());
    UFFDA_TRY_VOID(sink_.page(*block_, {offset}, page));
  }
  return Step::done;
}

Result<void> StreamParser::choose_block(const std::string& name) {
  const auto found = std::ranges::find(blocks_, name, &RamBlock::name);
  if (found == blocks_.end()) return std::unexpected(unlike(fmt::format("a page of block '{}'", name)));
  block_ = static_cast<std::size_t>(found - blocks_.begin());
  return {};
}

Result<StreamParser::Step> StreamParser::footer(ByteReader& in) {
  const auto mark = in.number<std::uint8_t>();
  const auto id = in.number<std::uint32_t>();
  if (!id) return Step::more;
  if (static_cast<Mark>(*mark) != Mark::footer || *id != ram_section_)
    return std::unexpected(unlike("a section of RAM does not end as it should"));
  if (blocks_.empty()) return std::unexpected(unlike("it has no RAM"));
  phase_ = ram_ends_ ? Phase::devices : Phase::section;
  return Step::done;
}

Result<std::vector<std::byte>> cut_description(std::vector<std::byte> devices) {
  constexpr std::size_t kHead = 1 + 1 + 4;  // end, description, its length
  constexpr auto kEnd = static_cast<std::byte>(Mark::end);
  if (!devices.empty() && devices.back() == kEnd) {  // a machine type without a description
    devices.pop_back();
    return devices;
  }
  // The description is text, in which there is no byte of 0: the last one is of its head.
  const auto last = std::ranges::find(devices.rbegin(), devices.rend(), kEnd);
  const auto begin = static_cast<std::size_t>(devices.rend() - last);  // behind it
  for (std::size_t back = 1; back <= std::min(begin, kHead); ++back) {
    const std::size_t at = begin - back;
    ByteReader head{std::span<const std::byte>(devices).subspan(at)};
    if (head.number<std::uint8_t>() != static_cast<std::uint8_t>(Mark::end)) continue;
    if (head.number<std::uint8_t>() != static_cast<std::uint8_t>(Mark::description)) continue;
    if (head.number<std::uint32_t>() != devices.size() - at - kHead) continue;
    devices.resize(at);
    return devices;
  }
  return std::unexpected(unlike("its devices do not end as they should"));
}

namespace {

constexpr std::uint32_t kSection = 2;  // a number of our own for RAM
constexpr std::uint32_t kPing = 1;

void put_command(ByteWriter& out, CommandWord word, std::span<const std::byte> body = {}) {
  out.number(static_cast<std::uint8_t>(Mark::command));
  out.number(static_cast<std::uint16_t>(word));
  out.number(static_cast<std::uint16_t>(body.size()));
  out.bytes(body);
}

template <typename... Numbers>
std::vector<std::byte> body_of(Numbers... numbers) {
  std::vector<std::byte> body;
  ByteWriter out(body);
  (out.number(numbers), ...);
  return body;
}

void put_footer(ByteWriter& out) {
  out.number(static_cast<std::uint8_t>(Mark::footer));
  out.number(kSection);
}

void put_table(ByteWriter& out, std::span<const RamBlock> blocks) {
  out.number(static_cast<std::uint8_t>(Mark::start));
  out.number(kSection);
  out.name("ram");
  out.number(std::uint32_t{0});
  out.number(kRamVersion);
  std::uint64_t total = 0;
  for (const RamBlock& block : blocks) total += block.length.value;
  out.number(total | kTable);
  for (const RamBlock& block : blocks) {
    out.name(block.name);
    out.number(block.length.value);
    if (block.page_size != kPageSize) out.number(block.page_size.value);
  }
  out.number(kEndOfRecords);
  put_footer(out);
}

/// What the machine has there of its own is thrown away. Without at least one of these QEMU 7.2 forgets that it is to
/// place pages, and writes to them.
void put_discard(ByteWriter& out, const RamBlock& block) {
  std::vector<std::byte> body;
  ByteWriter fields(body);
  fields.number(std::uint8_t{0});  // version
  fields.name(block.name);
  fields.number(std::uint8_t{0});  // ends the name
  fields.number(std::uint64_t{0});
  fields.number(block.length.value);
  put_command(out, CommandWord::postcopy_discard, body);
}

}  // namespace

std::vector<std::byte> to_start(const MachineState& state, std::span<const RamBlock> blocks) {
  std::vector<std::byte> stream;
  ByteWriter out(stream);
  out.number(kStreamMagic);
  out.number(kStreamVersion);
  if (!state.machine.empty()) {
    out.number(static_cast<std::uint8_t>(Mark::configuration));
    out.number(static_cast<std::uint32_t>(state.machine.size()));
    out.bytes(std::as_bytes(std::span(state.machine)));
  }
  put_command(out, CommandWord::open_return_path);
  put_command(out, CommandWord::ping, body_of(kPing));
  std::uint64_t page_sizes = 0;
  for (const RamBlock& block : blocks) page_sizes |= block.page_size.value;
  put_command(out, CommandWord::postcopy_advise, body_of(page_sizes, kTargetPage.value));
  put_table(out, blocks);
  for (const RamBlock& block : blocks) put_discard(out, block);

  std::vector<std::byte> package;
  ByteWriter packed(package);
  put_command(packed, CommandWord::postcopy_listen);
  packed.bytes(state.devices);
  put_command(packed, CommandWord::postcopy_run);
  put_command(out, CommandWord::packaged, body_of(static_cast<std::uint32_t>(package.size())));
  out.bytes(package);
  return stream;
}

std::vector<std::byte> to_ask_received(std::span<const RamBlock> blocks) {
  std::vector<std::byte> stream;
  ByteWriter out(stream);
  for (const RamBlock& block : blocks) {
    std::vector<std::byte> name;
    ByteWriter(name).name(block.name);
    put_command(out, CommandWord::ask_received, name);
  }
  return stream;
}

std::vector<std::byte> to_resume() {
  std::vector<std::byte> stream;
  ByteWriter out(stream);
  put_command(out, CommandWord::postcopy_resume);
  return stream;
}

std::vector<std::byte> to_ping(std::uint32_t value) {
  std::vector<std::byte> stream;
  ByteWriter out(stream);
  put_command(out, CommandWord::ping, body_of(value));
  return stream;
}

std::vector<std::byte> to_end() {
  std::vector<std::byte> stream;
  ByteWriter out(stream);
  out.number(static_cast<std::uint8_t>(Mark::last_part));
  out.number(kSection);
  out.number(kEndOfRecords);
  put_footer(out);
  out.number(static_cast<std::uint8_t>(Mark::end));
  return stream;
}

PageSection::PageSection(std::vector<std::byte>& out, std::string_view block) : out_(out), block_(block) {
  ByteWriter writer(out_);
  writer.number(static_cast<std::uint8_t>(Mark::part));
  writer.number(kSection);
}

PageSection::~PageSection() {
  ByteWriter writer(out_);
  writer.number(kEndOfRecords);
  put_footer(writer);
}

void PageSection::head(ByteOffset offset, std::uint64_t flag) {
  ByteWriter writer(out_);
  writer.number(offset.value | flag | (first_ ? 0 : kSameBlock));
  if (std::exchange(first_, false)) writer.name(block_);
}

void PageSection::page(ByteOffset offset, std::span<const std::byte> bytes) {
  if (all_zero(bytes)) return zero_page(offset);
  head(offset, kPage);
  ByteWriter(out_).bytes(bytes);
}

void PageSection::zero_page(ByteOffset offset) {
  head(offset, kZeroPage);
  out_.push_back(std::byte{0});
}

}  // namespace uffda::qemu
