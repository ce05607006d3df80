#include "support/handoff_support.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "support/test_support.h"

namespace uffda::test {
namespace {

constexpr unsigned kLongestSeconds = 60;

[[noreturn]] void run_child(const std::function<int()>& body) {
  ::alarm(kLongestSeconds);
  ::signal(SIGBUS, SIG_DFL);  // a sanitizer's handler would turn it into a status of its own
  const int status = body();
  std::fflush(nullptr);
  ::_exit(status);  // the parent's tests, temporary files and leak reports are its own
}

int serve(const ServeOptions& options) {
  ::alarm(0);
  const auto status = run_serve(options);
  if (status) return *status;
  std::fprintf(stderr, "server: %s\n", status.error().message().c_str());
  return status.error().code() == Errc::invalid_argument ? 2 : 1;
}

}  // namespace

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "uffda-test-XXXXXX").string();
  path_ = ::mkdtemp(pattern.data()) != nullptr ? pattern : std::string();
}

TempDir::~TempDir() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::path(std::string_view name) const { return fmt::format("{}/{}", path_, name); }

void write_pattern_file(const std::string& path, ByteCount size) {
  std::vector<std::byte> bytes(size.value);
  Pattern::fill(bytes, 0);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

ForkedProcess::ForkedProcess(const std::function<int()>& body) : pid_(::fork()) {
  if (pid_ == 0) run_child(body);
}

ForkedProcess::~ForkedProcess() {
  if (pid_ <= 0) return;
  signal(SIGKILL);
  (void)wait();
}

void ForkedProcess::signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

int ForkedProcess::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

Gate::Gate() {
  std::array<int, 2> ends{-1, -1};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) std::abort();
  read_.reset(ends[0]);
  write_.reset(ends[1]);
}

void Gate::open() const {
  if (::write(write_.get(), "", 1) != 1) std::abort();
}

void Gate::wait() const {
  char byte = 0;
  while (::read(read_.get(), &byte, 1) < 0 && errno == EINTR) {
  }
}

bool Gate::is_open() const {
  pollfd entry{.fd = read_.get(), .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, 0) == 1;
}

TestServer::TestServer(const TempDir& directory, ServeOptions options) {
  if (options.socket_path.empty()) options.socket_path = directory.path("server.sock");
  socket_ = options.socket_path;
  std::array<int, 2> ends{-1, -1};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return;
  os::UniqueFd read(ends[0]);
  os::UniqueFd write(ends[1]);
  options.ready_fd = write.get();
  process_ = std::make_unique<ForkedProcess>([&] {
    read.reset();
    (void)write.release();  // the server closes it
    return serve(options);
  });
  write.reset();
  std::array<char, 16> text{};
  ready_ = ::read(read.get(), text.data(), text.size()) == 6;
}

std::size_t TestServer::descriptors() const {
  const std::filesystem::directory_iterator list(fmt::format("/proc/{}/fd", pid()));
  return static_cast<std::size_t>(std::distance(begin(list), end(list)));
}

std::int64_t stat_of(const std::string& socket, const std::string& pointer) {
  auto client = HandoffClient::connect(socket);
  if (!client) return -1;
  const auto text = client->stats();
  if (!text) return -1;
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  const nlohmann::json::json_pointer at(pointer);
  return !json.is_discarded() && json.contains(at) ? json[at].get<std::int64_t>() : -1;
}

bool blocked_in_fault(pid_t thread) {
  std::ifstream file(fmt::format("/proc/self/task/{}/wchan", thread));
  std::string where;
  return static_cast<bool>(file >> where) && where.contains("userfault");
}

std::uint64_t usual_features() {
  return UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP |
         UFFD_FEATURE_EVENT_REMOVE;
}

Result<Attached> attach_to(const std::string& socket, std::uint64_t features) {
  HandoffClient client = UFFDA_TRY(HandoffClient::connect(socket));
  auto userfault = UFFDA_TRY(os::open_userfault({.features = features}));
  const handoff::Token token = UFFDA_TRY(client.attach(userfault->fd(), features));
  return Attached{.client = std::move(client), .userfault = std::move(userfault), .token = token};
}

Result<os::MappedMemory> map_export(Attached& attached, std::string_view name, const MapWish& wish) {
  const RemoteExport remote = UFFDA_TRY(attached.client.open(name));
  const std::uint64_t whole = align_up(remote.size.value, remote.folio_size.value) - wish.offset.value;
  const ByteCount told{wish.length.value == 0 ? whole : wish.length.value};
  const ByteCount length = told + wish.extra;
  auto memory = UFFDA_TRY(os::map_memory(length, PROT_NONE, MAP_PRIVATE, remote.cache.get(), wish.offset));
  UFFDA_TRY(attached.userfault->register_range(memory.address(), length, {UffdMode::missing, UffdMode::minor}));
  UFFDA_TRY_VOID(attached.client.map(attached.token, name, memory.address(), told, wish.offset));
  if (::mprotect(memory.bytes().data(), length.value, wish.protection) != 0) return fail_errno(errno, "mprotect");
  return memory;
}

bool userfaultfd_works() { return os::open_userfault({.features = usual_features()}).has_value(); }

}  // namespace uffda::test
