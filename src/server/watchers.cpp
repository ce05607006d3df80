#include "server/watchers.h"

#include <sys/socket.h>

#include <algorithm>

#include "base/log.h"
#include "server/packet.h"

namespace uffda {
namespace {

using handoff::Direction;
using handoff::Notice;
using handoff::Type;

Notice make_notice(const SourceFailure& failure) {
  Notice notice{};
  notice.header = make_header(Type::kNotice, Direction::request, sizeof notice);  // nobody's reply
  notice.offset = failure.range.start.value;
  notice.length = failure.range.length.value;
  handoff::put_text(notice.text, failure.error.message());
  return notice;
}

}  // namespace

Result<void> Watchers::add(int socket, std::span<const std::byte> confirmation) {
  const MutexLock lock(mutex_);
  if (sockets_.size() >= kMaxWatchers) return fail(Errc::no_memory, "too many connections watch this server already");
  UFFDA_TRY_VOID(handoff::send_packet(socket, confirmation, {}, Deadline::at({})));
  sockets_.push_back(socket);
  any_ever_ = true;
  return {};
}

bool Watchers::remove(int socket) {
  const MutexLock lock(mutex_);
  return std::erase(sockets_, socket) != 0;
}

std::size_t Watchers::count() const {
  const MutexLock lock(mutex_);
  return sockets_.size();
}

bool Watchers::any_ever() const {
  const MutexLock lock(mutex_);
  return any_ever_;
}

void Watchers::know(std::string object_name, std::string export_name) {
  const MutexLock lock(mutex_);
  exports_of_.emplace(std::move(object_name), std::move(export_name));
}

void Watchers::tell(const SourceFailure& failure) {
  Notice notice = make_notice(failure);
  const MutexLock lock(mutex_);
  const auto [first, last] = exports_of_.equal_range(failure.object);
  for (auto it = first; it != last; ++it) {
    if (handoff::put_name(notice.name, it->second)) send_to_all_locked(notice);
  }
}

void Watchers::send_to_all_locked(const Notice& notice) {
  std::erase_if(sockets_, [&](int socket) {
    if (handoff::send_message(socket, notice, Deadline::at({}))) return false;
    log(LogLevel::warning, "a watcher does not keep up with the notices and is dropped");
    // Its own thread sees the end and closes the connection.
    ::shutdown(socket, SHUT_RDWR);
    return true;
  });
}

}  // namespace uffda
