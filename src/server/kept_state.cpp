#include "server/kept_state.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "base/log.h"
#include "os/socket.h"

namespace uffda {
namespace {

/// FNV-1a: the same in every version of the program.
std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

Result<os::UniqueFd> copy_of(int fd) {
  os::UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) return fail_errno(errno, "copying a descriptor that is kept");
  return copy;
}

}  // namespace

int KeptHandshake::descriptor() const {
  cmsghdr header{};
  int fd = -1;
  std::memcpy(&header, control.data(), sizeof header);
  if (header.cmsg_len != CMSG_LEN(sizeof fd) || header.cmsg_level != SOL_SOCKET || header.cmsg_type != SCM_RIGHTS)
    return -1;
  std::memcpy(&fd, control.data() + CMSG_LEN(0), sizeof fd);
  return fd;
}

void KeptHandshake::clear() {
  // Word by word, the first first: who dies in between leaves no bytes that look unread.
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t))
    std::atomic_ref(*reinterpret_cast<std::uint64_t*>(bytes.data() + at)).store(0, std::memory_order_release);
  control.fill(std::byte{0});
}

Result<std::shared_ptr<KeptState>> KeptState::map(os::UniqueFd fd) {
  os::MappedMemory memory =
      UFFDA_TRY(os::map_memory({sizeof(Layout)}, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get()));
  return std::shared_ptr<KeptState>(new KeptState(std::move(fd), std::move(memory)));
}

Result<std::shared_ptr<KeptState>> KeptState::create() {
  auto state = UFFDA_TRY(map(UFFDA_TRY(os::create_memfd("uffda-kept", {align_up(sizeof(Layout), kPageSize.value)}))));
  state->layout().magic = kMagic;
  for (auto& listener : state->layout().listeners) listener = -1;
  state->layout().taker = -1;
  auto& seed = state->layout().seed;
  if (::getrandom(seed.data(), seed.size(), 0) != static_cast<ssize_t>(seed.size()))
    return fail_errno(errno, "getrandom");
  return state;
}

Result<std::shared_ptr<KeptState>> KeptState::open(os::UniqueFd memory) {
  struct stat status{};
  const bool whole = ::fstat(memory.get(), &status) == 0 &&
                     static_cast<std::uint64_t>(status.st_size) == align_up(sizeof(Layout), kPageSize.value);
  constexpr const char* kOther = "the server that runs is of a version whose state this one does not know";
  if (!whole) return fail(Errc::protocol, kOther);
  auto state = UFFDA_TRY(map(std::move(memory)));
  if (state->layout().magic != kMagic) return fail(Errc::protocol, kOther);
  state->set_taker(-1);
  return state;
}

std::vector<int> KeptState::descriptors() const {
  std::vector<int> all{fd_.get()};
  for (const auto& listener : layout().listeners) {
    if (listener.load() >= 0) all.push_back(listener.load());
  }
  for (const Protocol protocol : {Protocol::firecracker, Protocol::criu})
    std::ranges::copy(unanswered(protocol), std::back_inserter(all));
  if (const int sent = handshake().descriptor(); sent >= 0) all.push_back(sent);
  for (const Object& object : layout().objects) {
    if (object.used.load(std::memory_order_acquire) != 0) all.insert(all.end(), {object.cache, object.states});
  }
  for (const KeptSpace& space : layout().spaces) {
    if (space.used.load(std::memory_order_acquire) == 0) continue;
    all.push_back(space.fd);
    for (const uffd_msg& message : space.messages) {
      if (message.event == UFFD_EVENT_FORK) all.push_back(static_cast<int>(message.arg.fork.ufd));
    }
  }
  std::ranges::sort(all);
  const auto same = std::ranges::unique(all);
  all.erase(same.begin(), same.end());
  return all;
}

std::vector<int> KeptState::unanswered(Protocol protocol) const {
  const int socket = listener(protocol);
  return socket < 0 ? std::vector<int>{} : os::accepted_at(socket);
}

std::uint32_t KeptState::begin_server() {
  layout().serving.store(0);
  set_taker(-1);
  const MutexLock lock(mutex_);
  claimed_.reset();
  taken_.reset();
  for (std::size_t i = 0; i < kMaxSpaces; ++i) taken_[i] = layout().spaces[i].used.load() != 0;
  return layout().servers.fetch_add(1);
}

Result<KeptState::Place> KeptState::find_object(std::string_view key) {
  const std::uint64_t hash = hash_of(key);
  const MutexLock lock(mutex_);
  for (std::uint32_t i = 0; i < kMaxObjects; ++i) {
    Object& object = layout().objects[i];
    if (object.used.load() == 0 || object.key != hash) continue;
    claimed_.set(i);
    return Place{
        .number = i + 1,
        .kept = KeptFolios{.cache = UFFDA_TRY(copy_of(object.cache)), .states = UFFDA_TRY(copy_of(object.states))}};
  }
  for (std::uint32_t i = 0; i < kMaxObjects; ++i) {
    Object& object = layout().objects[i];
    if (object.used.load() != 0 || claimed_[i]) continue;
    claimed_.set(i);
    object.key = hash;
    return Place{.number = i + 1, .kept = std::nullopt};
  }
  return fail(Errc::no_memory, "a held server has at most 256 sources");
}

Result<void> KeptState::keep_object(std::uint32_t number, int cache, int states) {
  Object& object = layout().objects[number - 1];
  object.cache = UFFDA_TRY(copy_of(cache)).release();
  object.states = UFFDA_TRY(copy_of(states)).release();
  object.used.store(1, std::memory_order_release);
  return {};
}

void KeptState::drop_unclaimed() {
  const MutexLock lock(mutex_);
  for (std::size_t i = 0; i < kMaxObjects; ++i) {
    Object& object = layout().objects[i];
    if (claimed_[i] || object.used.exchange(0) == 0) continue;
    log(LogLevel::warning, "a source of the server before is not served any more: who has it mapped gets SIGBUS");
    os::UniqueFd(object.cache).reset();
    os::UniqueFd(object.states).reset();
  }
}

KeptSpace* KeptState::new_space(int fd, std::uint64_t features) {
  const MutexLock lock(mutex_);
  for (std::size_t i = 0; i < kMaxSpaces; ++i) {
    if (taken_[i]) continue;
    taken_.set(i);
    KeptSpace& space = layout().spaces[i];
    space.fd = fd;
    space.features = features;
    space.token = {};
    space.pid = 0;
    space.process = 0;
    space.forked = 0;
    space.number = 0;
    space.head.store(0);
    space.head_before = 0;
    space.messages = {};
    return &space;
  }
  return nullptr;
}

void KeptState::free_space(KeptSpace& space) {
  space.used.store(0, std::memory_order_release);
  const auto at = static_cast<std::uint64_t>(reinterpret_cast<std::byte*>(&space) - memory_.bytes().data());
  const std::uint64_t first = align_up(at, kPageSize.value);
  // The pages of a long log; what is left of it counts for nothing.
  const std::uint64_t end = align_down(at + sizeof space, kPageSize.value);
  if (!os::punch_hole(fd_.get(), {.start = {first}, .length = {end - first}}))
    log(LogLevel::warning, "the log of a client that is gone keeps its memory");
  const MutexLock lock(mutex_);
  taken_.reset(static_cast<std::size_t>(&space - layout().spaces.data()));
}

bool KeptState::knows(int fd) const {
  return std::ranges::any_of(layout().spaces,
                             [fd](const KeptSpace& space) { return space.used.load() != 0 && space.fd == fd; });
}

}  // namespace uffda
