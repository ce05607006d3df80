#include "support/fake_http.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "support/test_support.h"

namespace uffda::test {
namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

ByteRange range_of(const std::string& text) {
  unsigned long long first = 0;
  unsigned long long last = 0;
  if (std::sscanf(text.c_str(), "bytes=%llu-%llu", &first, &last) != 2) return {};
  return {{first}, {last - first + 1}};
}

}  // namespace

std::string FakeHttp::Request::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

bool FakeHttp::Peer::send(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

void FakeHttp::Peer::wait_for_end() const {
  char bytes[256];
  while (::recv(fd_, bytes, sizeof bytes, 0) > 0) {
  }
}

FakeHttp::FakeHttp(Answer answer)
    : answer_(std::move(answer)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(listener_.get(), 256) != 0 ||
      ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    std::abort();
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_all(); });
}

FakeHttp::~FakeHttp() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    arrived_.notify_all();
    for (const int fd : connections_) ::shutdown(fd, SHUT_RDWR);
  }
  ::shutdown(listener_.get(), SHUT_RDWR);
  acceptor_.join();
  for (std::thread& thread : threads_) thread.join();
  for (const int fd : connections_) ::close(fd);
}

std::string FakeHttp::url() const { return fmt::format("http://127.0.0.1:{}", port_); }

std::vector<FakeHttp::Request> FakeHttp::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

bool FakeHttp::wait_for(std::size_t count) const {
  std::unique_lock lock(mutex_);
  const auto enough = [&] { return stopping_ || requests_.size() >= count; };
  return arrived_.wait_for(lock, std::chrono::minutes(1), enough) && requests_.size() >= count;
}

void FakeHttp::accept_all() {
  for (;;) {
    const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return;
    const std::lock_guard lock(mutex_);
    connections_.push_back(fd);
    if (stopping_) return;
    threads_.emplace_back([this, fd] { serve(fd); });
  }
}

std::optional<FakeHttp::Request> FakeHttp::receive(int fd, std::string& pending) {
  std::size_t end = 0;
  while ((end = pending.find("\r\n\r\n")) == std::string::npos) {
    char bytes[4096];
    const ssize_t got = ::recv(fd, bytes, sizeof bytes, 0);
    if (got <= 0) return std::nullopt;
    pending.append(bytes, static_cast<std::size_t>(got));
  }
  Request request;
  std::string head = pending.substr(0, end + 2);
  pending.erase(0, end + 4);
  for (std::size_t at = head.find("\r\n"); at != std::string::npos; at = head.find("\r\n")) {
    const std::string line = head.substr(0, at);
    head.erase(0, at + 2);
    const std::size_t colon = line.find(": ");
    if (request.line.empty()) {
      request.line = line;
    } else if (colon != std::string::npos) {
      request.headers[lower(line.substr(0, colon))] = line.substr(colon + 2);
    }
  }
  request.range = range_of(request.header("range"));
  const std::lock_guard lock(mutex_);
  request.number = requests_.size();
  requests_.push_back(request);
  arrived_.notify_all();
  return request;
}

void FakeHttp::serve(int fd) {
  std::string pending;
  while (const auto request = receive(fd, pending)) {
    if (!answer_(*request, Peer(fd))) break;
  }
  ::shutdown(fd, SHUT_RDWR);  // closed when the server goes: its number stays taken
}

std::string FakeHttp::body(ByteRange range) {
  std::string bytes(range.length.value, '\0');
  Pattern::fill(std::as_writable_bytes(std::span(bytes)), range.start.value);
  return bytes;
}

std::string FakeHttp::right(const Request& request, const std::string& more) {
  const std::uint64_t last = request.range.end().value - 1;
  return fmt::format("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-{}/{}\r\nContent-Length: {}\r\n{}\r\n",
                     request.range.start.value, last, kSize, request.range.length.value, more) +
         body(request.range);
}

std::string FakeHttp::status(const std::string& line, const std::string& more, const std::string& body) {
  return fmt::format("HTTP/1.1 {}\r\nContent-Length: {}\r\n{}\r\n", line, body.size(), more) + body;
}

}  // namespace uffda::test
