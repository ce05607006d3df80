// Many VMs on one server of Firecracker's protocol: what one of them waits for a page when the faults come from 64
// instead of from one, and when another one's balloon gives back a page at a time as fast as it can.
//
// Each VM is a process with a userfaultfd of its own. The server's cache is warm: what is measured is uffda and the
// kernel. Needs --uffda FILE, the command.
#include <fcntl.h>
#include <linux/userfaultfd.h>
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
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "common/bench.h"

namespace {

using namespace bench;

constexpr std::size_t kSize = std::size_t{1} << 30U;  // of the export, nearly all of it a hole
constexpr std::size_t kUsedPages = 4096;              // that are touched, and cached before
constexpr std::int64_t kFaultsASecond = 4000;         // of all VMs together
constexpr std::size_t kFaults = 4000;                 // of all VMs in a round
constexpr std::size_t kMostVms = 64;

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

 private:
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
};
Shared* make_shared_memory() {
  void* const memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  check(memory != MAP_FAILED, "mmap");
  return static_cast<Shared*>(memory);
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

/// One of `vms`: faults at its share of the rate, at random, and says how long each took.
void run_vm(const std::string& socket, Shared& shared, std::size_t number, std::size_t vms) {
  const std::byte* const memory = restore(socket);
  touch(memory);  // it is served
  const std::vector<std::uint32_t> order = shuffled(kUsedPages - 1, number + 1);
  const std::int64_t apart = 1'000'000'000 / kFaultsASecond;
  const std::int64_t begin = now_ns() + 20'000'000;
  for (std::size_t i = number, step = 0; i < kFaults; i += vms, ++step) {
    const std::int64_t at = begin + static_cast<std::int64_t>(i) * apart;
    const timespec until{.tv_sec = at / 1'000'000'000, .tv_nsec = at % 1'000'000'000};
    ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
    const std::int64_t before = now_ns();
    touch(memory + (1 + order[step]) * kPage);
    shared.microseconds[i] = static_cast<double>(now_ns() - before) / 1000;
  }
}

Summary latency(const std::string& socket, Shared& shared, std::size_t vms) {
  std::vector<pid_t> running;
  for (std::size_t i = 0; i < vms; ++i) running.push_back(start([&, i] { run_vm(socket, shared, i, vms); }));
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

void measure(Report& report, const std::string& socket) {
  Shared& shared = *make_shared_memory();
  wait_for(start([&] {
    const std::byte* const memory = restore(socket);
    for (std::size_t page = 0; page < kUsedPages; ++page) touch(memory + page * kPage);
  }));
  std::vector<double> one, many, plain, beside, plain_p99, beside_p99;
  for (unsigned round = 0; round < (report.quick() ? 3U : 9U); ++round) {
    Report::progress("round " + std::to_string(round + 1));
    one.push_back(latency(socket, shared, 1).p99);
    many.push_back(latency(socket, shared, kMostVms).p99);
    const Summary without = latency_beside_storm(socket, shared, false);
    const Summary with = latency_beside_storm(socket, shared, true);
    plain.push_back(without.p50);
    beside.push_back(with.p50);
    plain_p99.push_back(without.p99);
    beside_p99.push_back(with.p99);
  }
  constexpr Target kTwice{.bound = Bound::at_most, .ratio = 2};
  report.compare_rounds({.name = "64 VMs: p99 of a fault, at the same rate of all",
                         .unit = "us",
                         .peer_name = "one VM",
                         .target = kTwice},
                        many, one);
  report.compare_rounds({.name = "a fault, while another VM's balloon storms: p50",
                         .unit = "us",
                         .peer_name = "its storm is served by nobody",
                         .target = kTwice},
                        beside, plain);
  report.compare_rounds(
      {.name = "the same: p99", .unit = "us", .peer_name = "its storm is served by nobody", .target = kTwice},
      beside_p99, plain_p99);
}

}  // namespace

int main(int argc, char** argv) {
  Report report("firecracker", argc, argv);
  const std::string uffda = report.option("uffda", "build/release/uffda");
  const Server server(uffda, report.option("dir", "/tmp"));
  measure(report, server.socket());
  report.finish();
  return 0;
}
