// The contract of a memory type.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <optional>

#include "memtypes/added.h"
#include "modules/check_parts.h"
#include "modules/module_type.h"
#include "os/memory.h"
#include "uffda/uffda.h"

namespace uffda::modules {
namespace {

constexpr std::uint64_t kFolios = 12;
constexpr std::uint64_t kTail = 77;  // bytes of the last folio
constexpr unsigned kCreations = 20;

using Bytes = std::vector<std::byte>;

/// A byte that tells its place and its version.
std::byte byte_at(std::uint64_t at, unsigned version) {
  std::uint64_t word = (at / 8 + 1 + version) * 0x9E3779B97F4A7C15ULL;
  word ^= word >> 29U;
  return static_cast<std::byte>(word >> (at % 8 * 8) & 0xFFU);
}

Bytes bytes_of(ByteRange range, unsigned version) {
  Bytes bytes(range.length.value);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_at(range.start.value + i, version);
  return bytes;
}

/// A source of those bytes.
class PlainSource final : public PageSource {
 public:
  explicit PlainSource(ByteCount size) { opened("the suite's bytes", {.size = size}); }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    const Bytes bytes = bytes_of(ticket.range(), 0);
    std::ranges::copy(bytes, ticket.buffer().begin());
    std::move(ticket).complete({bytes.size()});
  }
};

class TypeCheck {
 public:
  TypeCheck(const std::shared_ptr<TypeKind>& kind, const std::string& label, Duration deadline)
      : kind_(kind),
        type_(make_module_type(kind, label, deadline)),
        label_(label),
        deadline_(deadline),
        folio_(kind->about().folio_size),
        size_{(kFolios - 1) * folio_ + kTail} {}

  Result<void> create() {
    backing_ = UFFDA_TRY(type_->create(size_, "the suite's memory"));
    return {};
  }
  Result<void> absent_at_first();
  Result<void> reads_back();
  Result<void> overwrites();
  Result<void> shown_by_mappings();
  Result<void> drops();
  Result<void> shares();
  Result<void> faults();
  Result<void> leaves_nothing();
  void destroy() { backing_.reset(); }
  [[nodiscard]] bool has_cache() const { return kind_->about().ops.ioctls.has(UffdIoctl::continue_) || !raises(); }
  [[nodiscard]] bool raises() const { return kind_->about().ops.modes.has_any({UffdMode::missing, UffdMode::minor}); }

 private:
  [[nodiscard]] ByteRange all() const { return {.start = {0}, .length = size_}; }
  [[nodiscard]] ByteRange folios(FolioIndex first, std::uint64_t count) const {
    const std::uint64_t end = std::min((first + count) * folio_, size_.value);
    return {.start = {first * folio_}, .length = {end - first * folio_}};
  }
  Result<void> publish(ByteRange range, unsigned version) { return backing_->publish(range, bytes_of(range, version)); }
  Result<void> holds(ByteRange range, unsigned version) {
    Bytes got(range.length.value);
    UFFDA_TRY_VOID(backing_->read(range.start, got));
    if (got == bytes_of(range, version)) return {};
    return fail(Errc::protocol,
                fmt::format("bytes {} to {} are not those that were published", range.start.value, range.end().value));
  }
  Result<void> compare_mapped(int fd, ByteRange range, unsigned version);

  std::shared_ptr<TypeKind> kind_;
  std::unique_ptr<MemoryType> type_;
  std::string label_;
  Duration deadline_;
  std::uint64_t folio_;
  ByteCount size_;
  std::unique_ptr<Backing> backing_;
};

Result<void> TypeCheck::absent_at_first() {
  if (!kind_->about().ops.ioctls.has(UffdIoctl::continue_))
    return fail(Errc::unsupported, "its table has no CONTINUE, so nothing is looked up");
  ModuleMemory memory = UFFDA_TRY(create_module_memory(kind_, label_, size_, "new", deadline_));
  Result<void> result;
  for (FolioIndex i = 0; result && i < kFolios; ++i) {
    const auto found =
        memory.calls->call("a lookup", Deadline::after(deadline_), [ops = memory.ops, i] { return ops->look_up(i); });
    if (!found) result = std::unexpected(found.error());
    if (found && *found != 0) result = fail(Errc::protocol, fmt::format("folio {} of new memory is cached", i));
  }
  memory.calls->close("destroy", deadline_, [ops = memory.ops] { return ops->destroy(); });
  return result;
}

Result<void> TypeCheck::reads_back() {
  // Out of order, in runs, and with the last folio that is not whole.
  for (const ByteRange range : {folios(5, 1), folios(7, 5), folios(0, 5), folios(6, 1)})
    UFFDA_TRY_VOID(publish(range, 0));
  return holds(all(), 0);
}

Result<void> TypeCheck::overwrites() {
  UFFDA_TRY_VOID(publish(folios(3, 2), 1));
  UFFDA_TRY_VOID(holds(folios(3, 2), 1));
  UFFDA_TRY_VOID(holds(folios(0, 3), 0));
  UFFDA_TRY_VOID(holds(folios(5, 7), 0));
  return publish(folios(3, 2), 0);
}

Result<void> TypeCheck::compare_mapped(int fd, ByteRange range, unsigned version) {
  const ByteCount length{align_up(range.length.value, kPageSize.value)};
  const os::MappedMemory mapped = UFFDA_TRY(os::map_memory(length, PROT_READ, MAP_SHARED, fd, range.start));
  const Bytes expected = bytes_of(range, version);
  if (std::equal(expected.begin(), expected.end(), mapped.bytes().begin())) return {};
  return fail(Errc::protocol,
              fmt::format("a mapping shows other bytes at {} to {}", range.start.value, range.end().value));
}

Result<void> TypeCheck::shown_by_mappings() { return compare_mapped(backing_->mapping_fd(), all(), 0); }

Result<void> TypeCheck::drops() {
  if (!raises()) return fail(Errc::unsupported, "it raises no faults, so it is never dropped");
  UFFDA_TRY_VOID(backing_->drop(folios(2, 3)));
  UFFDA_TRY_VOID(backing_->drop(folios(11, 1)));
  UFFDA_TRY_VOID(holds(folios(0, 2), 0));
  UFFDA_TRY_VOID(holds(folios(5, 6), 0));
  UFFDA_TRY_VOID(publish(folios(2, 3), 2));
  UFFDA_TRY_VOID(publish(folios(11, 1), 2));
  UFFDA_TRY_VOID(holds(folios(2, 3), 2));
  UFFDA_TRY_VOID(holds(folios(11, 1), 2));
  return compare_mapped(backing_->mapping_fd(), folios(2, 3), 2);
}

Result<void> TypeCheck::shares() {
  if (!kind_->about().shareable) return fail(Errc::unsupported, "it cannot be shared with other processes");
  const os::UniqueFd shared = UFFDA_TRY(backing_->share());
  return compare_mapped(shared.get(), folios(5, 6), 0);
}

Result<void> TypeCheck::faults() {
  auto engine = Engine::create({.kernel_faults = KernelFaults::optional, .deadline = deadline_});
  if (!engine) return fail(Errc::unsupported, engine.error().message());
  auto memory = UFFDA_TRY(
      engine->map(std::make_unique<PlainSource>(size_),
                  {.type = std::string(type_->name()), .populate = raises() ? Populate::on_touch : Populate::first}));
  const Bytes expected = bytes_of(all(), 0);
  // Populated first: a page that cannot be had would raise SIGBUS here, and is an error there.
  if (kind_->about().ops.ioctls.has(UffdIoctl::continue_))
    UFFDA_TRY_VOID(memory.populate(all(), Deadline::after(deadline_)));
  if (std::ranges::equal(memory.bytes(), expected)) return {};
  return fail(Errc::protocol, "mapped memory shows other bytes than its source's");
}

Result<void> TypeCheck::leaves_nothing() {
  const std::size_t before = open_descriptors();
  for (unsigned i = 0; i < kCreations; ++i) UFFDA_TRY(type_->create(size_, "short-lived"));
  const std::size_t after = open_descriptors();
  if (after <= before) return {};
  return fail(Errc::protocol, fmt::format("{} descriptors stay open after it was created and destroyed {} times",
                                          after - before, kCreations));
}

}  // namespace

void check_type_contract(Suite& suite, const std::shared_ptr<TypeKind>& kind, const std::string& label,
                         Duration deadline) {
  const std::string name = "memory type " + kind->about().name + ": ";
  TypeCheck check(kind, label, deadline);
  const bool created = suite.run(name + "its name is free, and memory can be made of it", [&]() -> Result<void> {
    UFFDA_TRY_VOID(add_memory_type([kind, label, deadline] { return make_module_type(kind, label, deadline); }));
    return check.create();
  });
  if (!created) return;
  if (check.has_cache()) {
    suite.run(name + "in new memory nothing is cached", [&] { return check.absent_at_first(); });
    if (suite.run(name + "what is published is found and read back", [&] { return check.reads_back(); })) {
      suite.run(name + "publishing again overwrites, and only what it should", [&] { return check.overwrites(); });
      suite.run(name + "mappings of its descriptor show it", [&] { return check.shown_by_mappings(); });
      suite.run(name + "what is dropped is gone, its neighbours are not", [&] { return check.drops(); });
      suite.run(name + "its shared descriptor shows it, for reading only", [&] { return check.shares(); });
    }
  }
  suite.run(name + "a program that maps it sees its source's bytes", [&] { return check.faults(); });
  suite.run(name + "destroying it leaves nothing open", [&] { return check.leaves_nothing(); });
  suite.run(name + "it is destroyed in time", [&]() -> Result<void> {
    check.destroy();
    return {};
  });
}

}  // namespace uffda::modules
