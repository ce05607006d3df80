// What the http source saves: 64 concurrent fetches against one, with a round trip of 2 ms, and touching a part of an
// object against reading all of it first. Over nginx on loopback.
// Usage: http [--quick] [--dir DIR] [--json FILE]
#include <arpa/inet.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "common/bench.h"
#include "uffda/page_source.h"

namespace {

using namespace uffda;

constexpr std::size_t kObjectBytes = std::size_t{64} << 20U;
constexpr std::size_t kConcurrent = 64;
constexpr std::size_t kTouched = 160;  // pages: one hundredth of the object

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = loopback(0);
  socklen_t length = sizeof address;
  bench::check(::bind(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0, "bind");
  bench::check(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0, "getsockname");
  ::close(fd);
  return ntohs(address.sin_port);
}

/// The nginx that runs; 0: none. Who gives up in the middle (die) runs no destructor.
pid_t running = 0;

/// nginx with one worker, serving one file.
class Server {
 public:
  explicit Server(const std::string& directory) : port_(free_port()) {
    std::filesystem::create_directories(directory);
    directory_ = std::filesystem::absolute(directory);
    write_files();
    const std::string log = directory_ + "/error.log";
    const std::string configuration = directory_ + "/nginx.conf";
    const std::array<const char*, 8> words = {"nginx",     "-p", directory_.c_str(),    "-e",
                                              log.c_str(), "-c", configuration.c_str(), nullptr};
    started_ = ::posix_spawnp(&pid_, "nginx", nullptr, nullptr, const_cast<char**>(words.data()), environ) == 0;
    running = started_ ? pid_ : 0;
    std::atexit([] {
      if (running > 0) ::kill(running, SIGKILL);
    });
    while (started_ && !listens()) bench::check(::waitpid(pid_, nullptr, WNOHANG) == 0, "nginx does not start");
  }
  ~Server() {
    if (started_) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      running = 0;
    }
    std::filesystem::remove_all(directory_);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] bool started() const { return started_; }
  [[nodiscard]] std::string uri() const { return "http://127.0.0.1:" + std::to_string(port_) + "/object"; }

 private:
  void write_files() const {
    std::vector<char> bytes(kObjectBytes);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 2654435761U >> 13U);
    std::ofstream(directory_ + "/object").write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    std::ofstream(directory_ + "/nginx.conf")
        << "daemon off; master_process off; pid " << directory_ << "/pid; error_log " << directory_ << "/error.log;\n"
        << "events { worker_connections 512; }\nhttp { access_log off; keepalive_requests 1000000;\n"
        << "client_body_temp_path " << directory_ << "/b; proxy_temp_path " << directory_ << "/p; fastcgi_temp_path "
        << directory_ << "/f; uwsgi_temp_path " << directory_ << "/u; scgi_temp_path " << directory_ << "/s;\n"
        << "server { listen 127.0.0.1:" << port_ << "; root " << directory_ << "; } }\n";
  }

  [[nodiscard]] bool listens() const {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = loopback(port_);
    const bool connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    ::close(fd);
    if (!connected) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return connected;
  }

  std::string directory_;
  int port_;
  pid_t pid_ = -1;
  bool started_ = false;
};

/// Fetches with a bounded number in flight.
class Client final : public FetchOwner {
 public:
  explicit Client(PageSource& source) : source_(source), buffer_(kConcurrent << 20U) {}

  /// Milliseconds for all of `offsets`, `length` bytes each.
  double fetch(const std::vector<std::uint64_t>& offsets, std::size_t length, std::size_t at_once) {
    const std::int64_t start = bench::now_ns();
    for (std::size_t done = 0; done < offsets.size(); done += at_once) {
      const std::size_t count = std::min(at_once, offsets.size() - done);
      for (std::size_t i = 0; i < count; ++i) {
        const std::span<std::byte> buffer(buffer_.data() + (i << 20U), length);
        source_.fetch(FetchTicket(*this, nullptr, {{offsets[done + i]}, {length}}, buffer,
                                  Deadline::after(std::chrono::seconds(30))));
      }
      for (std::size_t i = 0; i < count; ++i) answered_.acquire();
    }
    return static_cast<double>(bench::now_ns() - start) * 1e-6;
  }

 private:
  void fetched(void*, Result<ByteCount> result) noexcept override {
    if (!result) bench::die(result.error().message());
    answered_.release();
  }

  PageSource& source_;
  std::vector<std::byte> buffer_;
  std::counting_semaphore<1024> answered_{0};
};

std::unique_ptr<PageSource> open(const std::string& uri) {
  auto source = open_source(uri);
  if (!source) bench::die(source.error().message());
  return std::move(*source);
}

/// Pages that do not touch each other.
std::vector<std::uint64_t> scattered(std::size_t count, std::uint64_t seed) {
  const auto pages = bench::shuffled(kObjectBytes / bench::kPage / 2, seed);
  std::vector<std::uint64_t> offsets;
  for (std::size_t i = 0; i < count; ++i) offsets.push_back(std::uint64_t{pages[i]} * 2 * bench::kPage);
  return offsets;
}

void measure(bench::Report& report, const Server& server) {
  constexpr std::size_t kPiece = std::size_t{1} << 20U;
  const int rounds = report.quick() ? 5 : 25;
  const auto far = open("delay+" + server.uri() + "?delay=2ms");
  const auto near = open(server.uri());
  Client slow(*far);
  Client fast(*near);
  std::vector<std::uint64_t> all;
  for (std::uint64_t at = 0; at < kObjectBytes; at += kPiece) all.push_back(at);
  std::vector<double> many;
  std::vector<double> one;
  std::vector<double> many_further;  // than from near by
  std::vector<double> one_further;
  std::vector<double> part;
  std::vector<double> whole;
  fast.fetch(scattered(kConcurrent, 0), bench::kPage, kConcurrent);
  slow.fetch(scattered(kConcurrent, 0), bench::kPage, kConcurrent);  // connections are made
  for (int round = 1; round <= rounds; ++round) {
    const auto seed = static_cast<std::uint64_t>(round);
    many.push_back(slow.fetch(scattered(kConcurrent, seed), bench::kPage, kConcurrent));
    one.push_back(slow.fetch(scattered(1, seed + 1000), bench::kPage, 1));
    many_further.push_back(many.back() - fast.fetch(scattered(kConcurrent, seed + 3000), bench::kPage, kConcurrent));
    one_further.push_back(one.back() - fast.fetch(scattered(1, seed + 4000), bench::kPage, 1));
    part.push_back(fast.fetch(scattered(kTouched, seed + 2000), bench::kPage, 8));
    whole.push_back(fast.fetch(all, kPiece, 8));
  }
  report.compare_rounds({.name = "http, 2 ms away: 64 fetches at once", .unit = "ms", .peer_name = "one fetch"}, many,
                        one);
  report.compare_rounds({.name = "http: what 2 ms of distance add to 64 fetches at once",
                         .unit = "ms",
                         .peer_name = "to one fetch",
                         .target = bench::kAboutOneRoundTrip},
                        many_further, one_further);
  report.compare_rounds({.name = "http: a hundredth of an object", .unit = "ms", .peer_name = "all of it first"}, part,
                        whole);
}

}  // namespace

int main(int argc, char** argv) {
  bench::Report report("http", argc, argv);
  const Server server(report.option("dir", "build/bench") + "/http");
  if (server.started()) {
    measure(report, server);
  } else {
    report.skip("http", "no nginx here");
  }
  report.finish();
  return 0;
}
