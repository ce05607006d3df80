// Many VMs on one server of Firecracker's protocol: what one of them waits for a page when the faults come from 64
// instead of from one, and when another one's balloon gives back a page at a time as fast as it can.
//
// Each VM is a process with a userfaultfd of its own. The server's cache is warm: what is measured is uffda and the
// kernel. Needs --uffda FILE, the command.
//
// Nothing but faults happens while they are measured, or it would be the work of 64 restores and 64 ends that the
// faults of 64 VMs wait for, and one VM's do not: all VMs are restored before the first fault that counts, their faults
// take turns, none ends before the last, and the server has forgotten those of before. The first touch of each 2 MiB
// takes the kernel a page for page tables. That is an eighth of the faults of 64 VMs in a second and hardly any of
// one's; it stays in the figures, for VMs are like that (2 us of such a fault). A bare handler with the same VMs
// (common/copying_floor.h) shows what part is the kernel's.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "common/bench.h"
#include "common/copying_floor.h"

namespace {

using namespace bench;

constexpr std::size_t kSize = std::size_t{1} << 30U;  // of the export, nearly all of it a hole
constexpr std::size_t kUsedPages = 4096;              // that are touched, and cached before
constexpr std::int64_t kFaultsASecond = 4000;         // of all VMs together
constexpr std::size_t kFaults = 4000;                 // of all VMs in a round
constexpr std::size_t kMostVms = 64;
constexpr std::int64_t kSecond = 1'000'000'000;  // ns
constexpr std::int64_t kPatience = 30 * kSecond;

/// `uffda serve` for as long as this lives.
class Server {
 public:
  Server(const std::string& uffda, const std::string& dir) : socket_(dir + "/firecracker.sock") {
    const std::string file = dir + "/firecracker.mem";
    const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    check(fd >= 0 && ::ftruncate(fd, kSize) == 0, file);
    ::close(fd);
    std::array<int, 2> ready{};
    check(::pipe(ready.data()) == 0, "pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      const std::string source = "vm=file:" + file;
      const std::string number = std::to_string(ready[1]);
      ::execl(uffda.c_str(), "uffda", "serve", "--protocol", "firecracker", "--socket", socket_.c_str(), "--export",
              source.c_str(), "--ready-fd", number.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(ready[1]);
    char byte = 0;
    if (::read(ready[0], &byte, 1) != 1) die("the server does not start: " + uffda);
    ::close(ready[0]);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  [[nodiscard]] const std::string& socket() const { return socket_; }
  /// It looks once a second whose process has ended.
  void wait_until_it_has_no_vm() const {
    constexpr timespec kNap{.tv_sec = 0, .tv_nsec = 20'000'000};
    for (const std::int64_t start = now_ns(); has_vm(); ::nanosleep(&kNap, nullptr))
      if (now_ns() - start > kPatience) die("the server does not forget VMs that have ended");
  }

 private:
  [[nodiscard]] bool has_vm() const {
    namespace fs = std::filesystem;
    std::error_code gone;  // a descriptor may be closed meanwhile
    for (const auto& descriptor : fs::directory_iterator("/proc/" + std::to_string(pid_) + "/fd"))
      if (fs::read_symlink(descriptor.path(), gone) == "anon_inode:[userfaultfd]") return true;
    return false;
  }

  std::string socket_;
  pid_t pid_ = -1;
};

void send(const std::string& path, const std::string& words, int userfault) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy_n(path.c_str(), std::min(path.size(), sizeof address.sun_path - 1), address.sun_path);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, path);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  iovec part{.iov_base = const_cast<char*>(words.data()), .iov_len = words.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &userfault, sizeof userfault);
  check(::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(words.size()), "sendmsg");
}

std::byte* map_memory() {
  void* const memory =
      ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(memory != MAP_FAILED, "mmap");
  return static_cast<std::byte*>(memory);
}

/// Memory that the server has.
std::byte* restore(const std::string& socket) {
  std::byte* const memory = map_memory();
  const auto userfault = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  uffdio_api api{.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE, .ioctls = 0};
  check(userfault >= 0 && ::ioctl(userfault, UFFDIO_API, &api) == 0, "userfaultfd");
  uffdio_register range{};
  range.range = {.start = reinterpret_cast<std::uintptr_t>(memory), .len = kSize};
  range.mode = UFFDIO_REGISTER_MODE_MISSING;
  check(::ioctl(userfault, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
  send(socket,
       "[{\"base_host_virt_addr\":" + std::to_string(range.range.start) + ",\"size\":" + std::to_string(kSize) +
           ",\"offset\":0,\"page_size\":4096}]",
       userfault);
  return memory;
}

void touch(const std::byte* page) { [[maybe_unused]] const volatile std::byte seen = *page; }

/// What the VMs and the program share.
struct Shared {
  std::array<double, kFaults> microseconds;
  std::int64_t begin;  // of the faults
  sem_t arrived;
  sem_t passed;
};
Shared* make_shared_memory() {
  void* const memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  check(memory != MAP_FAILED, "mmap");
  auto* const shared = static_cast<Shared*>(memory);
  check(::sem_init(&shared->arrived, 1, 0) == 0 && ::sem_init(&shared->passed, 1, 0) == 0, "sem_init");
  return shared;
}

void take(sem_t& semaphore) {
  const std::int64_t at = now_ns() + kPatience;
  const timespec until{.tv_sec = at / kSecond, .tv_nsec = at % kSecond};
  int status = 0;
  do status = ::sem_clockwait(&semaphore, CLOCK_MONOTONIC, &until);
  while (status != 0 && errno == EINTR);
  check(status == 0, "waiting for the other VMs");
}

/// A VM waits for all the others.
void meet(Shared& shared) {
  ::sem_post(&shared.arrived);
  take(shared.passed);
}

/// All of them are there, then all of them go on.
void let_meet(Shared& shared, std::size_t vms) {
  for (std::size_t i = 0; i < vms; ++i) take(shared.arrived);
  shared.begin = now_ns() + kSecond / 20;
  for (std::size_t i = 0; i < vms; ++i) ::sem_post(&shared.passed);
}

pid_t start(const std::function<void()>& body) {
  const pid_t pid = ::fork();
  check(pid >= 0, "fork");
  if (pid != 0) return pid;
  body();
  ::_exit(0);
}

void wait_for(pid_t pid) {
  int status = 0;
  check(::waitpid(pid, &status, 0) == pid && status == 0, "a VM failed");
}

/// One of `vms`: faults at its share of the rate, at random, and says how long each took. What is due while the VM
/// waits for a page waits with it, from then on: else a time in which nothing is served would count once for one VM,
/// which stands still, and once for each of 64.
void run_vm(const std::string& socket, Shared& shared, std::size_t number, std::size_t vms) {
  const std::byte* const memory = restore(socket);
  touch(memory);  // it is served
  const std::vector<std::uint32_t> order = shuffled(kUsedPages - 1, number + 1);
  const std::int64_t apart = kSecond / kFaultsASecond;
  meet(shared);
  const std::int64_t begin = shared.begin;
  std::int64_t waits = 0;  // the last wait, and what came due in it
  std::int64_t goes_on = 0;
  for (std::size_t i = number, step = 0; i < kFaults; i += vms, ++step) {
    const std::int64_t at = begin + static_cast<std::int64_t>(i) * apart;
    const timespec until{.tv_sec = at / kSecond, .tv_nsec = at % kSecond};
    ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
    const bool waited = at >= waits && at <= goes_on;
    if (!waited) waits = now_ns();
    const std::int64_t from = waited ? at : waits;
    touch(memory + (1 + order[step]) * kPage);
    goes_on = now_ns();
    shared.microseconds[i] = static_cast<double>(goes_on - from) / 1000;
  }
  meet(shared);
}

Summary latency(const std::string& socket, Shared& shared, std::size_t vms) {
  std::vector<pid_t> running;
  for (std::size_t i = 0; i < vms; ++i) running.push_back(start([&, i] { run_vm(socket, shared, i, vms); }));
  let_meet(shared, vms);  // served
  let_meet(shared, vms);  // done
  for (const pid_t pid : running) wait_for(pid);
  return summarize({shared.microseconds.begin(), shared.microseconds.end()});
}

/// Gives back page after page. Of memory that nobody serves that is work for the kernel alone.
void storm(std::byte* memory) {
  for (std::size_t page = kUsedPages;; page = page + 1 == kSize / kPage ? kUsedPages : page + 1)
    check(::madvise(memory + page * kPage, kPage, MADV_DONTNEED) == 0, "madvise");
}

Summary latency_beside_storm(const std::string& socket, Shared& shared, bool served) {
  const pid_t other = start([&] { storm(served ? restore(socket) : map_memory()); });
  const Summary summary = latency(socket, shared, 1);
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
  return summary;
}

/// By rounds.
struct Percentiles {
  std::vector<double> p50;
  std::vector<double> p99;

  void add(const Summary& summary) {
    p50.push_back(summary.p50);
    p99.push_back(summary.p99);
  }
};

struct Measured {
  Percentiles one, many, bare_one, bare_many, unserved_storm, storm;
};

Measured measure(const Server& server, const std::string& dir, unsigned rounds) {
  Shared& shared = *make_shared_memory();
  wait_for(start([&] {
    const std::byte* const memory = restore(server.socket());
    for (std::size_t page = 0; page < kUsedPages; ++page) touch(memory + page * kPage);
  }));
  Measured measured;
  for (unsigned round = 0; round < rounds; ++round) {
    Report::progress("round " + std::to_string(round + 1));
    for (const bool several : {false, true}) {
      const std::size_t vms = several ? kMostVms : 1;
      server.wait_until_it_has_no_vm();
      (several ? measured.many : measured.one).add(latency(server.socket(), shared, vms));
      server.wait_until_it_has_no_vm();
      const CopyingFloor floor(dir + "/floor.sock", kUsedPages);
      (several ? measured.bare_many : measured.bare_one).add(latency(floor.socket(), shared, vms));
    }
    for (const bool served : {false, true}) {
      server.wait_until_it_has_no_vm();
      (served ? measured.storm : measured.unserved_storm).add(latency_beside_storm(server.socket(), shared, served));
    }
  }
  return measured;
}

void tell(Report& report, const Measured& measured) {
  constexpr Target kTwice{.bound = Bound::at_most, .ratio = 2};
  const auto row = [&](const char* name, const char* peer, std::optional<Target> target, const auto& uffda,
                       const auto& other) {
    report.compare_rounds({.name = name, .unit = "us", .peer_name = peer, .target = target}, uffda, other);
  };
  row("64 VMs: p99 of a fault, at the same rate of all", "one VM", kTwice, measured.many.p99, measured.one.p99);
  row("the same", "bare handler, 64 VMs", {}, measured.many.p99, measured.bare_many.p99);
  row("one VM: p99 of a fault", "bare handler, one VM", {}, measured.one.p99, measured.bare_one.p99);
  row("64 VMs: p50", "bare handler, 64 VMs", {}, measured.many.p50, measured.bare_many.p50);
  row("one VM: p50", "bare handler, one VM", {}, measured.one.p50, measured.bare_one.p50);
  constexpr const char* kUnserved = "its storm is served by nobody";
  row("a fault, while another VM's balloon storms: p50", kUnserved, kTwice, measured.storm.p50,
      measured.unserved_storm.p50);
  row("the same: p99", kUnserved, kTwice, measured.storm.p99, measured.unserved_storm.p99);
}

}  // namespace

int main(int argc, char** argv) {
  Report report("firecracker", argc, argv);
  const std::string uffda = report.option("uffda", "build/release/uffda");
  const std::string dir = report.option("dir", "/tmp");
  const Server server(uffda, dir);
  tell(report, measure(server, dir, report.quick() ? 3U : 9U));
  report.finish();
  return 0;
}
