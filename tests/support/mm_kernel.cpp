#include "support/mm_kernel.h"

#include <setjmp.h>  // NOLINT(modernize-deprecated-headers): sigsetjmp is POSIX
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "os/socket.h"
#include "support/mm_fake_userfault.h"

// Faults that are handled in the faulting thread run ordinary code in a handler of SIGBUS. That signal is synchronous
// and comes from memory that no allocator uses, so it interrupts none; the sanitizer cannot know that.
// NOLINTNEXTLINE(bugprone-reserved-identifier): the sanitizer's name for it
extern "C" const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() { return "report_signal_unsafe=0"; }

namespace uffda::test {
namespace {

thread_local sigjmp_buf escape;
thread_local volatile sig_atomic_t may_escape = 0;

void on_fault(int signal) {
  if (may_escape != 0) siglongjmp(escape, 1);
  ::signal(signal, SIG_DFL);
}

constexpr std::uint64_t kFeatures = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_POISON |
                                    UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP;

}  // namespace

void install_touch_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_handler = on_fault;
    action.sa_flags = SA_NODEFER;
    ::sigaction(SIGBUS, &action, nullptr);
    ::sigaction(SIGSEGV, &action, nullptr);
  });
}

std::optional<std::byte> touch(const std::byte* at) {
  install_touch_handler();
  if (sigsetjmp(escape, 1) != 0) {
    may_escape = 0;
    return std::nullopt;
  }
  may_escape = 1;
  const std::byte value = *static_cast<const volatile std::byte*>(at);
  may_escape = 0;
  return value;
}

std::string userfaultfd_refused() {
  const auto opened = os::open_userfault({.features = kFeatures});
  return opened ? std::string{} : opened.error().message();
}

bool eventually(const std::function<bool()>& condition) {
  const TimePoint until = Clock::now() + kPatience;
  while (!condition()) {
    if (Clock::now() >= until) return false;
    std::this_thread::yield();
  }
  return true;
}

std::size_t waiting_faults(int userfaultfd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(userfaultfd));
  for (std::string word; info >> word;) {
    std::size_t count = 0;
    if (word == "total:" && info >> count) return count;
  }
  return 0;
}

bool send_note(int socket, const Note& note, int fd) {
  return os::send_packet(socket, std::as_bytes(std::span(&note, 1)), {}, fd, os::Waiting::until).has_value();
}

std::optional<Note> receive_note(int socket, os::UniqueFd* fd) {
  Note note;
  auto received = os::receive_packet(socket, std::as_writable_bytes(std::span(&note, 1)), os::Waiting::until);
  if (!received || received->size != sizeof note) return std::nullopt;
  if (fd != nullptr && received->descriptor) *fd = std::move(received->descriptor);
  return note;
}

Child::Child(const std::function<int(int)>& body) {
  auto ends = os::make_socket_pair();
  if (!ends) return;
  std::fflush(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ends->first.reset();
    const int status = body(ends->second.get());
    std::fflush(nullptr);
    ::_exit(status);
  }
  socket_ = std::move(ends->first);
}

Child::~Child() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  wait();
}

int Child::wait() {
  int status = -1;
  if (pid_ > 0) ::waitpid(pid_, &status, 0);
  pid_ = -1;
  return status;
}

std::optional<ClientMemory> client_map(int socket, std::uint64_t extra_features) {
  os::UniqueFd memory;
  const auto what = receive_note(socket, &memory);
  if (!what || !memory) return std::nullopt;
  const ByteCount length{align_up(what->a, kPageSize.value)};
  auto userfault = os::open_userfault({.features = kFeatures | extra_features});
  if (!userfault) return std::nullopt;
  void* at = ::mmap(nullptr, length.value, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, memory.get(), 0);
  if (at == MAP_FAILED) return std::nullopt;
  const Address start{reinterpret_cast<std::uintptr_t>(at)};
  if (!(*userfault)->register_range(start, length, {UffdMode::missing, UffdMode::minor})) return std::nullopt;
  if (!send_note(socket, {.a = start.value, .b = length.value, .c = kFeatures | extra_features}, (*userfault)->fd()))
    return std::nullopt;
  if (!receive_note(socket) || ::mprotect(at, length.value, PROT_READ | PROT_WRITE) != 0) return std::nullopt;
  // The client keeps its descriptor: it must outlive the server.
  return ClientMemory{.data = static_cast<std::byte*>(at), .size = what->a, .userfaultfd = userfault->release()->fd()};
}

std::optional<Served> serve(const std::shared_ptr<Core>& core, const std::shared_ptr<MemoryObject>& object,
                            const Child& child) {
  auto shared = object->share();
  if (!shared || !send_note(child.socket(), {.a = object->size().value}, shared->get())) return std::nullopt;
  os::UniqueFd fd;
  const auto mapped = receive_note(child.socket(), &fd);
  if (!mapped || !fd) return std::nullopt;
  auto userfault = os::adopt_userfault(std::move(fd), mapped->c);
  if (!userfault) return std::nullopt;
  Served served{.space = AddressSpace::create(core, std::move(*userfault), "child"), .loop = {}, .base = {mapped->a}};
  if (!served.space->attach(served.base, {mapped->b}, object, {})) return std::nullopt;
  auto loop = FaultLoop::start_polling(served.space);
  if (!loop) return std::nullopt;
  served.loop = std::move(*loop);
  if (!send_note(child.socket(), {})) return std::nullopt;
  return served;
}

std::unique_ptr<LocalMemory> LocalMemory::create(const std::shared_ptr<Core>& core,
                                                 const std::shared_ptr<MemoryObject>& object) {
  auto userfault = os::open_userfault(
      {.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_POISON, .blocking = true});
  if (!userfault) return nullptr;
  auto memory = std::make_unique<LocalMemory>();
  memory->space = AddressSpace::create(core, std::move(*userfault), "this process");
  auto loop = FaultLoop::start_blocking(memory->space, HandlerPolicy::per_cpu);
  if (!loop) return nullptr;
  memory->loop = std::move(*loop);
  const ByteCount length{align_up(object->size().value, object->folio_size().value)};
  const int fd = object->backing().mapping_fd();
  auto mapping =
      os::map_memory(length, PROT_NONE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED, fd);
  if (!mapping) return nullptr;
  memory->mapping = std::move(*mapping);
  const UffdModes modes = object->type().ops()->modes & UffdModes{UffdMode::missing, UffdMode::minor};
  if (!memory->space->userfault().register_range(memory->mapping.address(), length, modes)) return nullptr;
  if (!memory->space->attach(memory->mapping.address(), length, object, {})) return nullptr;
  if (::mprotect(memory->mapping.bytes().data(), length.value, PROT_READ) != 0) return nullptr;
  return memory;
}

LocalMemory::~LocalMemory() {
  if (space) space->detach(mapping.address(), {mapping.bytes().size()});
}

}  // namespace uffda::test
