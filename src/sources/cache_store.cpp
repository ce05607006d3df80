#include "sources/cache_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <string_view>

#include <fmt/format.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "os/memory.h"

namespace uffda::sources {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kVersion = 1;
constexpr std::uint64_t kSetBytes = kPage + CacheSet::kWays * kCachePiece.value;
constexpr std::array<char, 16> kMagic = [] {
  std::array<char, 16> magic{};
  std::ranges::copy(std::string_view("uffda host cache"), magic.begin());
  return magic;
}();

struct Header {
  std::array<char, 16> magic = kMagic;
  std::uint64_t version = kVersion;
  std::uint64_t sets = 0;
  Hash128 checksum;  ///< of what stands before it

  [[nodiscard]] Hash128 right_checksum() const {
    return hash_of(std::as_bytes(std::span(this, 1)).first(offsetof(Header, checksum)));
  }
};

constexpr std::uint64_t set_offset(std::uint64_t set) { return kPage + set * kPage; }

constexpr std::uint64_t slot_offset(std::uint64_t sets, std::uint64_t set, std::size_t way) {
  return kPage + sets * kPage + (set * CacheSet::kWays + way) * kCachePiece.value;
}

template <typename T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

/// A lock of one page of the file, held by this descriptor. It goes with the process.
class PageLock {
 public:
  PageLock(int fd, std::uint64_t offset) : fd_(fd), offset_(offset) { held_ = set(F_WRLCK); }
  ~PageLock() {
    if (held_) (void)set(F_UNLCK);
  }
  PageLock(const PageLock&) = delete;
  PageLock& operator=(const PageLock&) = delete;
  /// False: another process is at it. Never waits.
  [[nodiscard]] bool held() const { return held_; }

 private:
  [[nodiscard]] bool set(short type) const {
    struct flock lock{};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(offset_);
    lock.l_len = static_cast<off_t>(kPage);
    return ::fcntl(fd_, F_OFD_SETLK, &lock) == 0;
  }
  int fd_;
  std::uint64_t offset_;
  bool held_ = false;
};

/// A fresh cache under a name of its own: the whole of its sets is on the disk, nothing of its slots.
Result<os::UniqueFd> make_file(const std::string& path, std::uint64_t sets) {
  os::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno(errno, path);
  Header header;
  header.sets = sets;
  header.checksum = header.right_checksum();
  const int full = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(set_offset(sets)));
  if (full != 0) return fail_errno(full, path);
  if (::ftruncate(fd.get(), static_cast<off_t>(slot_offset(sets, sets, 0))) != 0) return fail_errno(errno, path);
  UFFDA_TRY_VOID(os::write_at(fd.get(), {0}, bytes_of(header)));
  if (::fsync(fd.get()) != 0) return fail_errno(errno, path);
  return fd;
}

enum class Found : std::uint8_t { nothing, usable, damaged };

/// What stands at the place of the cache. Errors: it is not ours to touch, or has another size.
Result<Found> look_at(const std::string& path, std::uint64_t sets, os::UniqueFd& fd) {
  fd.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  if (!fd && errno == ENOENT) return Found::nothing;
  if (!fd) return fail_errno(errno, path);
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, path);
  if (!S_ISREG(status.st_mode)) return fail(Errc::invalid_argument, path + ": is no file: name another dir=");
  if (status.st_uid != ::geteuid())
    return fail(Errc::permission_denied,
                path + ": is another user's, who could change what is read: name a dir= of yours");
  Header header;
  const auto have = std::min<std::uint64_t>(static_cast<std::uint64_t>(status.st_size), sizeof header);
  if (!os::read_at(fd.get(), {0}, bytes_of(header).first(have))) return Found::damaged;
  const std::size_t magic = std::min<std::size_t>(have, kMagic.size());
  if (!std::ranges::equal(std::span(header.magic).first(magic), std::span(kMagic).first(magic)))
    return fail(Errc::invalid_argument, path + ": is no cache of uffda: remove it, or name another dir=");
  if (have < sizeof header || header.version != kVersion || header.checksum != header.right_checksum())
    return Found::damaged;
  if (header.sets != sets) {
    return fail(Errc::invalid_argument, fmt::format("{}: the cache there has size={}: say the same, or remove it", path,
                                                    header.sets * kSetBytes + kPage));
  }
  // Cut by somebody: what is missing reads as "not there", and comes back with use.
  const auto whole = static_cast<off_t>(slot_offset(sets, sets, 0));
  if (status.st_size < whole && ::ftruncate(fd.get(), whole) != 0) return fail_errno(errno, path);
  return Found::usable;
}

}  // namespace

Hash128 hash_of(std::span<const std::byte> bytes, std::uint64_t seed) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {hash.low64, hash.high64};
}

Result<std::unique_ptr<CacheStore>> CacheStore::open(const std::string& directory, ByteCount size) {
  if (directory.empty()) return fail(Errc::invalid_argument, "cache+: the parameter dir= is missing");
  const std::uint64_t sets = (size.value - std::min(size.value, kPage)) / kSetBytes;
  if (sets == 0)
    return fail(Errc::invalid_argument, fmt::format("cache+: size={} is too small: at least 4M", size.value));
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno(errno, directory);
  const std::string path = directory + "/uffda-cache";
  os::UniqueFd fd;
  // Again, if another process was faster.
  for (int attempt = 0; attempt < 8; ++attempt) {
    const Found found = UFFDA_TRY(look_at(path, sets, fd));
    if (found == Found::usable) return std::unique_ptr<CacheStore>(new CacheStore(std::move(fd), sets));
    const std::string fresh = fmt::format("{}.{}.{}", path, ::getpid(), attempt);
    ::unlink(fresh.c_str());
    auto made = make_file(fresh, sets);
    const bool placed = made && (found == Found::damaged ? ::rename(fresh.c_str(), path.c_str())
                                                         : ::link(fresh.c_str(), path.c_str())) == 0;
    const int why = errno;
    ::unlink(fresh.c_str());
    if (!made) return std::unexpected(made.error());
    if (!placed && why != EEXIST) return fail_errno(why, path);
  }
  return fail(Errc::busy, path + ": others keep replacing it");
}

bool CacheStore::read_set(std::uint64_t number, CacheSet& set) const {
  return os::read_at(fd_.get(), {set_offset(number)}, bytes_of(set)).has_value();
}

bool CacheStore::read(const Hash128& key, std::span<std::byte> bytes) {
  CacheSet set;
  const std::uint64_t number = set_of(key);
  if (!read_set(number, set)) return false;
  const auto way = set.find(key);
  if (!way || set.entries[*way].length != bytes.size()) return false;
  CacheEntry& entry = set.entries[*way];
  if (entry.kind == CacheEntry::zeroes) {
    std::ranges::fill(bytes, std::byte{0});
  } else if (!os::read_at(fd_.get(), {slot_offset(sets_, number, *way)}, bytes)) {
    return false;
  }
  if (hash_of(bytes, key.low) != entry.checksum) return false;
  if (entry.visited == 0) {
    entry.visited = 1;
    const auto offset = static_cast<std::uint64_t>(reinterpret_cast<std::byte*>(&entry.visited) - bytes_of(set).data());
    // A mark that is lost, or falls on the slot's next piece, costs nothing but its place in the queue.
    (void)os::write_at(fd_.get(), {set_offset(number) + offset}, bytes_of(entry.visited));
  }
  return true;
}

Result<void> CacheStore::write(const Hash128& key, std::span<const std::byte> bytes) {
  const MutexLock lock(writing_);
  const std::uint64_t number = set_of(key);
  const PageLock page(fd_.get(), set_offset(number));
  if (!page.held()) return {};
  return insert_locked(number, key, bytes);
}

Result<void> CacheStore::insert_locked(std::uint64_t number, const Hash128& key, std::span<const std::byte> bytes) {
  CacheSet set;
  if (!read_set(number, set)) set = {};
  const auto known = set.find(key);  // perhaps damaged, or of another process, which then is the same
  const std::size_t way = known ? *known : set.make_room();
  CacheEntry& entry = set.entries[way];
  entry = {};
  // From here until the end the slot is free: whoever reads it now finds nothing.
  UFFDA_TRY_VOID(os::write_at(fd_.get(), {set_offset(number)}, bytes_of(set)));
  const bool zeroes = std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
  if (!zeroes) UFFDA_TRY_VOID(os::write_at(fd_.get(), {slot_offset(sets_, number, way)}, bytes));
  entry = {.key = key,
           .checksum = hash_of(bytes, key.low),
           .sequence = set.next(),
           .kind = zeroes ? CacheEntry::zeroes : CacheEntry::data,
           .visited = 0,
           .length = static_cast<std::uint32_t>(bytes.size()),
           .unused = {}};
  return os::write_at(fd_.get(), {set_offset(number)}, bytes_of(set));
}

}  // namespace uffda::sources
