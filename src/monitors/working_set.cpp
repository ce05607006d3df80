#include "monitors/working_set.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "os/fd.h"
#include "os/memory.h"

namespace uffda {
namespace {

static_assert(std::endian::native == std::endian::little, "the file is written as it lies in memory");

constexpr std::array<char, 8> kMagic{'u', 'f', 'f', 'd', 'a', '-', 'w', 's'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kComplete = 1;  // of SetHeader::flags
constexpr std::size_t kMaxName = 4096;
constexpr std::uint64_t kMaxFile = (1_GiB).value;
constexpr std::uint64_t kMaxObject = std::uint64_t{1} << 60U;
constexpr std::uint64_t kMaxFolio = (1_GiB).value;

struct FileHeader {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t sets;
  std::uint64_t bytes;     // of the whole file
  std::uint32_t checksum;  // of all that follows this header
  std::uint32_t reserved;
};
static_assert(sizeof(FileHeader) == 32);

struct SetHeader {
  std::uint64_t size;
  std::uint64_t folio_size;
  std::uint32_t flags;
  std::uint32_t name_bytes;
  std::uint64_t runs;
};
static_assert(sizeof(SetHeader) == 32);

struct Run {
  std::uint64_t first;
  std::uint32_t count;
  std::uint32_t at_ms;
};
static_assert(sizeof(Run) == 16);

/// CRC-32 as in zlib and Ethernet.
std::uint32_t crc32(std::span<const std::byte> bytes) {
  constexpr std::uint32_t kPolynomial = 0xEDB88320U;
  static const std::array<std::uint32_t, 256> table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t i = 0; i < made.size(); ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1U) ^ ((value & 1U) != 0 ? kPolynomial : 0U);
      made.at(i) = value;
    }
    return made;
  }();
  std::uint32_t sum = ~std::uint32_t{0};
  for (const std::byte byte : bytes) sum = (sum >> 8U) ^ table.at((sum ^ std::to_integer<std::uint32_t>(byte)) & 0xFFU);
  return ~sum;
}

template <typename T>
void append(std::vector<std::byte>& to, const T& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  to.insert(to.end(), bytes.begin(), bytes.end());
}

std::unexpected<Error> damaged(std::string_view what) {
  return fail(Errc::invalid_argument, fmt::format("damaged: {}", what));
}

/// Takes the file apart from front to back.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  [[nodiscard]] std::size_t left() const { return rest_.size(); }
  Result<std::span<const std::byte>> take(std::size_t bytes) {
    if (bytes > rest_.size()) return damaged("it ends too early");
    const auto taken = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return taken;
  }
  template <typename T>
  Result<T> take() {
    const auto bytes = UFFDA_TRY(take(sizeof(T)));
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

 private:
  std::span<const std::byte> rest_;
};

Result<void> check_set(const SetHeader& header) {
  if (header.size == 0 || header.size > kMaxObject) return damaged("the size of an object");
  if (!std::has_single_bit(header.folio_size) || header.folio_size < kPageSize.value || header.folio_size > kMaxFolio)
    return damaged("the folio size of an object");
  if (header.name_bytes > kMaxName) return damaged("a name is too long");
  if (header.runs > kMaxTouchedRuns) return damaged("too many runs");
  return {};
}

Result<WorkingSet> parse_set(Reader& reader) {
  const auto header = UFFDA_TRY(reader.take<SetHeader>());
  UFFDA_TRY_VOID(check_set(header));
  const auto name = UFFDA_TRY(reader.take(align_up(header.name_bytes, sizeof(std::uint64_t))));
  const std::uint64_t folios = align_up(header.size, header.folio_size) / header.folio_size;
  WorkingSet set{.name = std::string(reinterpret_cast<const char*>(name.data()), header.name_bytes),
                 .size = {header.size},
                 .folio_size = {header.folio_size},
                 .complete = (header.flags & kComplete) != 0,
                 .runs = {}};
  if (header.runs > reader.left() / sizeof(Run)) return damaged("it ends too early");
  set.runs.reserve(header.runs);
  std::uint64_t left = folios;
  for (std::uint64_t i = 0; i < header.runs; ++i) {
    const auto run = UFFDA_TRY(reader.take<Run>());
    if (run.count > left) return damaged("more folios than its object has");
    left -= run.count;
    if (run.count == 0 || run.first >= folios || run.count > folios - run.first)
      return damaged("a run is not within its object");
    set.runs.push_back(
        {.folios = {.first = run.first, .count = run.count}, .at = std::chrono::milliseconds(run.at_ms)});
  }
  return set;
}

void append_set(std::vector<std::byte>& bytes, const WorkingSet& set) {
  append(bytes, SetHeader{.size = set.size.value,
                          .folio_size = set.folio_size.value,
                          .flags = set.complete ? kComplete : 0,
                          .name_bytes = static_cast<std::uint32_t>(set.name.size()),
                          .runs = set.runs.size()});
  const auto name = std::as_bytes(std::span(set.name));
  bytes.insert(bytes.end(), name.begin(), name.end());
  bytes.resize(align_up(bytes.size(), sizeof(std::uint64_t)));
  for (const TouchedRun& run : set.runs) {
    append(bytes, Run{.first = run.folios.first,
                      .count = static_cast<std::uint32_t>(run.folios.count),
                      .at_ms = static_cast<std::uint32_t>(std::min<std::int64_t>(run.at.count(), UINT32_MAX))});
  }
}

Result<std::vector<std::byte>> read_file(const std::string& file) {
  const os::UniqueFd in(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status{};
  if (!in || ::fstat(in.get(), &status) != 0) return fail_errno(errno, file);
  if (!S_ISREG(status.st_mode)) return fail(Errc::invalid_argument, fmt::format("{} is not a file", file));
  if (static_cast<std::uint64_t>(status.st_size) > kMaxFile)
    return fail(Errc::invalid_argument, fmt::format("{} is larger than any working set", file));
  std::vector<std::byte> bytes(static_cast<std::size_t>(status.st_size));
  if (auto read = os::read_at(in.get(), {}, bytes); !read) return std::unexpected(read.error().within(file));
  return bytes;
}

}  // namespace

std::vector<std::byte> working_set_bytes(std::span<const WorkingSet> sets) {
  std::vector<std::byte> bytes(sizeof(FileHeader));
  for (const WorkingSet& set : sets) append_set(bytes, set);
  const FileHeader header{.magic = kMagic,
                          .version = kVersion,
                          .sets = static_cast<std::uint32_t>(sets.size()),
                          .bytes = bytes.size(),
                          .checksum = crc32(std::span(bytes).subspan(sizeof(FileHeader))),
                          .reserved = 0};
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

Result<std::vector<WorkingSet>> parse_working_sets(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  const auto header = reader.take<FileHeader>();
  if (!header || header->magic != kMagic)
    return fail(Errc::invalid_argument, "not a working set: uffda exec --record FILE makes one");
  if (header->version != kVersion) {
    return fail(Errc::invalid_argument,
                fmt::format("a working set of version {}, and this uffda knows version {}", header->version, kVersion));
  }
  if (header->bytes != bytes.size()) return damaged("it is not as long as it says");
  if (header->reserved != 0) return damaged("what is reserved is not 0");
  if (header->sets > kMaxWorkingSets) return damaged("too many objects");
  if (header->checksum != crc32(bytes.subspan(sizeof(FileHeader)))) return damaged("the checksum is wrong");
  std::vector<WorkingSet> sets;
  sets.reserve(header->sets);  // bounded above
  for (std::uint32_t i = 0; i < header->sets; ++i) sets.push_back(UFFDA_TRY(parse_set(reader)));
  if (reader.left() != 0) return damaged("it goes on after its end");
  return sets;
}

Result<std::vector<WorkingSet>> read_working_sets(const std::string& file) {
  const std::vector<std::byte> bytes = UFFDA_TRY(read_file(file));
  auto sets = parse_working_sets(bytes);
  if (!sets) return std::unexpected(sets.error().within(file));
  return sets;
}

Result<std::vector<WorkingSet>> read_working_sets(PageSource& source) {
  const std::vector<std::byte> bytes = UFFDA_TRY(source.working_set());
  if (bytes.empty()) return std::vector<WorkingSet>{};
  auto sets = parse_working_sets(bytes);
  if (!sets) return std::unexpected(sets.error().within(source.name()));
  return sets;
}

Result<void> write_working_sets(const std::string& file, std::span<const WorkingSet> sets) {
  const std::vector<std::byte> bytes = working_set_bytes(sets);
  const std::string draft = fmt::format("{}.{}.tmp", file, ::getpid());
  os::UniqueFd out(::open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!out) return fail_errno(errno, fmt::format("the working set {}", draft));
  Result<void> written = os::write_at(out.get(), {}, bytes);
  if (written && ::fsync(out.get()) != 0) written = fail_errno(errno, draft);
  out.reset();
  if (written && ::rename(draft.c_str(), file.c_str()) != 0)
    written = fail_errno(errno, fmt::format("the working set {}", file));
  if (!written) (void)::unlink(draft.c_str());
  return written;
}

Result<const WorkingSet*> find_working_set(std::span<const WorkingSet> sets, std::string_view name, ByteCount size,
                                           std::size_t exports) {
  const bool only = sets.size() == 1 && exports == 1;
  const auto found = only ? sets.begin() : std::ranges::find(sets, name, &WorkingSet::name);
  if (found == sets.end()) return fail(Errc::not_found, fmt::format("no working set of '{}' was recorded", name));
  if (found->size != size) {
    return fail(Errc::invalid_argument,
                fmt::format("the working set of '{}' was recorded of {} bytes, and it has {} now", name,
                            found->size.value, size.value));
  }
  return &*found;
}

}  // namespace uffda
