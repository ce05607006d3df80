// An http server whose every answer the test decides, byte by byte: for what real servers do not do.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "os/fd.h"
#include "uffda/units.h"

namespace uffda::test {

class FakeHttp {
 public:
  struct Request {
    std::string line;                            ///< "GET /path HTTP/1.1"
    std::map<std::string, std::string> headers;  ///< names in lower case
    ByteRange range{};
    std::size_t number = 0;  ///< counted from 0 over all connections
    [[nodiscard]] bool probe() const { return range == ByteRange{{0}, {1}}; }
    [[nodiscard]] std::string header(const std::string& name) const;
  };
  class Peer {
   public:
    explicit Peer(int fd) : fd_(fd) {}
    /// False: nobody hears it any more.
    bool send(std::string_view bytes) const;
    /// Waits until the client hangs up.
    void wait_for_end() const;

   private:
    int fd_;
  };
  /// Called in the connection's thread. False: hang up.
  using Answer = std::function<bool(const Request&, const Peer&)>;

  explicit FakeHttp(Answer answer);
  ~FakeHttp();
  FakeHttp(const FakeHttp&) = delete;
  FakeHttp& operator=(const FakeHttp&) = delete;

  [[nodiscard]] std::string url() const;
  [[nodiscard]] int port() const { return port_; }
  [[nodiscard]] std::vector<Request> requests() const;
  /// Waits until so many requests have arrived, ever. False: they did not, or the server is on its way out.
  [[nodiscard]] bool wait_for(std::size_t count) const;

  static constexpr std::uint64_t kSize = std::uint64_t{1} << 20U;
  /// The right answer for an object of kSize bytes of the pattern; `more` are header lines beside the usual ones, each
  /// with its end of line.
  static std::string right(const Request& request, const std::string& more = "ETag: \"v1\"\r\n");
  static std::string body(ByteRange range);
  static std::string status(const std::string& line, const std::string& more = {}, const std::string& body = {});

 private:
  void accept_all();
  void serve(int fd);
  std::optional<Request> receive(int fd, std::string& pending);

  Answer answer_;
  os::UniqueFd listener_;
  int port_ = -1;
  mutable std::mutex mutex_;
  mutable std::condition_variable arrived_;
  std::vector<Request> requests_;
  std::vector<std::thread> threads_;
  std::vector<int> connections_;
  bool stopping_ = false;
  std::thread acceptor_;
};

}  // namespace uffda::test
