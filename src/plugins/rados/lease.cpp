#include "plugins/rados/lease.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "plugins/rados/write_op.h"

namespace uffda::sources::rados {
namespace {

constexpr const char* kLock = "uffda.writer";
constexpr unsigned kLockAttempts = 4;
constexpr std::uint32_t kBlocklistSeconds = 24 * 3600;

/// Of a process, what tells it from every other one that ever was.
struct Writer {
  std::string boot;        ///< of the machine
  std::uint64_t pids = 0;  ///< the namespace of its number
  long pid = 0;
  std::string start;  ///< when it was, in ticks since the boot
  std::string host;

  [[nodiscard]] std::string text() const { return fmt::format("{} {} {} {} {}", boot, pids, pid, start, host); }
};

/// Fields 3 (state) and 22 (start) of /proc/PID/stat. False: there is no such process.
bool read_stat(long pid, char& state, std::string& start) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const std::size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return false;
  std::istringstream fields(text.substr(name_end + 1));
  fields >> state;
  for (int field = 4; field <= 22; ++field) fields >> start;
  return !fields.fail();
}

Writer this_process() {
  Writer writer;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> writer.boot;
  struct stat pids{};
  if (::stat("/proc/self/ns/pid", &pids) == 0) writer.pids = pids.st_ino;
  writer.pid = ::getpid();
  char state = 0;
  if (!read_stat(writer.pid, state, writer.start)) writer.start = "0";
  std::array<char, 256> host{};
  (void)::gethostname(host.data(), host.size() - 1);
  writer.host = host.data();
  if (writer.boot.empty()) writer.boot = "unknown";
  if (writer.host.empty()) writer.host = "unknown";
  return writer;
}

Writer writer_from(const std::string& cookie) {
  Writer writer;
  std::istringstream(cookie) >> writer.boot >> writer.pids >> writer.pid >> writer.start >> writer.host;
  return writer;
}

/// Only what can be seen from here: whoever is on another machine, or in another container, may live.
bool is_dead(const Writer& writer) {
  const Writer me = this_process();
  if (writer.boot != me.boot || writer.pids != me.pids || writer.pids == 0 || me.boot == "unknown") return false;
  char state = 0;
  std::string start;
  if (!read_stat(writer.pid, state, start)) return ::access("/proc/self/stat", R_OK) == 0;
  return state == 'Z' || state == 'X' || start != writer.start;
}

struct Locker {
  std::string client;
  std::string cookie;
};

/// None: an empty client.
Result<Locker> locker_of(const Cluster& cluster) {
  std::array<char, 4096> clients{};
  std::array<char, 4096> cookies{};
  std::array<char, 4096> tag{};
  std::array<char, 4096> addresses{};
  std::size_t clients_size = clients.size();
  std::size_t cookies_size = cookies.size();
  std::size_t tag_size = tag.size();
  std::size_t addresses_size = addresses.size();
  int exclusive = 0;
  const auto count = ::rados_list_lockers(cluster.io(), cluster.object().c_str(), kLock, &exclusive, tag.data(),
                                          &tag_size, clients.data(), &clients_size, cookies.data(), &cookies_size,
                                          addresses.data(), &addresses_size);
  if (count == -ENOENT || count == 0) return Locker{};
  if (count < 0)
    return std::unexpected(error_of(static_cast<int>(count), cluster.name() + ": asking who writes to it"));
  return Locker{clients.data(), cookies.data()};
}

std::string in_words(const Writer& writer) { return fmt::format("process {} on {}", writer.pid, writer.host); }

std::unexpected<Error> not_ours(const Cluster& cluster) {
  return fail(Errc::busy, cluster.name() + ": somebody else has taken it over, or stored it anew");
}

}  // namespace

std::string WriterRecord::text() const {
  if (number == 0) return {};
  return fmt::format("{} {} {} {}", number, open ? "open" : "closed", changes, address);
}

Result<WriterRecord> WriterRecord::parse(const std::string& text) {
  WriterRecord record;
  if (text.empty()) return record;
  std::string state;
  std::istringstream fields(text);
  fields >> record.number >> state >> record.changes >> record.address;
  record.open = state == "open";
  if (fields.fail() || record.text() != text)
    return fail(Errc::invalid_argument, fmt::format("the attribute {} is damaged", kAttribute));
  return record;
}

Result<WriterRecord> WriterRecord::read(const Cluster& cluster) {
  std::array<char, 1024> text{};
  const int status = ::rados_getxattr(cluster.io(), cluster.object().c_str(), kAttribute, text.data(), text.size());
  if (status == -ENODATA) return WriterRecord{};
  if (status == -ENOENT)
    return fail(Errc::not_found, fmt::format("{}: there is no such object: uffda put stores one", cluster.name()));
  if (status < 0) return std::unexpected(error_of(status, cluster.name() + ": reading who wrote to it last"));
  Result<WriterRecord> record = parse(std::string(text.data(), static_cast<std::size_t>(status)));
  if (!record) return std::unexpected(record.error().within(cluster.name()));
  return record;
}

Result<std::string> writer_of(const Cluster& cluster) {
  const Locker locker = UFFDA_TRY(locker_of(cluster));
  return locker.client.empty() ? std::string() : in_words(writer_from(locker.cookie));
}

Result<std::unique_ptr<Lease>> Lease::take(std::shared_ptr<const Cluster> cluster) {
  std::unique_ptr<Lease> lease(new Lease(std::move(cluster)));
  UFFDA_TRY(WriterRecord::read(*lease->cluster_));  // to lock what is not there would make it
  UFFDA_TRY_VOID(lease->lock());
  UFFDA_TRY_VOID(lease->fence());
  return lease;
}

Lease::~Lease() {
  if (locked_) (void)::rados_unlock(cluster_->io(), cluster_->object().c_str(), kLock, cookie_.c_str());
}

int Lease::try_lock() {
  timeval duration{.tv_sec = kLockTime.count(), .tv_usec = 0};
  return ::rados_lock_exclusive(cluster_->io(), cluster_->object().c_str(), kLock, cookie_.c_str(),
                                "uffda writes to this image", &duration, LIBRADOS_LOCK_FLAG_MAY_RENEW);
}

Result<void> Lease::lock() {
  static std::atomic<unsigned> openings = 0;
  cookie_ = fmt::format("{} {}", this_process().text(), ++openings);
  for (unsigned attempt = 0; attempt < kLockAttempts; ++attempt) {
    const int status = try_lock();
    locked_ = status >= 0;
    if (locked_) return {};
    if (status == -EPERM || status == -EACCES) {
      return fail(
          Errc::permission_denied,
          cluster_->name() + ": locking it to write: the key needs osd 'allow rwx pool=...', see ceph auth caps");
    }
    if (status != -EBUSY && status != -EEXIST)
      return std::unexpected(error_of(status, cluster_->name() + ": locking it to write"));
    const Locker locker = UFFDA_TRY(locker_of(*cluster_));
    if (locker.client.empty()) continue;
    const Writer writer = writer_from(locker.cookie);
    if (!is_dead(writer)) {
      return fail(Errc::busy, fmt::format("{}: {} writes to it; if that is no more, wait {} s", cluster_->name(),
                                          in_words(writer), kLockTime.count()));
    }
    (void)::rados_break_lock(cluster_->io(), cluster_->object().c_str(), kLock, locker.client.c_str(),
                             locker.cookie.c_str());
  }
  return fail(Errc::busy, cluster_->name() + ": others want to write to it, too");
}

/// Keeps the last writer out for good, if he has not left in good order, and puts us in his place.
Result<void> Lease::fence() {
  const WriterRecord last = UFFDA_TRY(WriterRecord::read(*cluster_));
  if (last.open) {
    std::string address = last.address;
    const int status = ::rados_blocklist_add(cluster_->handle(), address.data(), kBlocklistSeconds);
    if (status == -EPERM || status == -EACCES) {
      return fail(
          Errc::permission_denied,
          fmt::format("{}: the last writer ({}) was killed, and must be kept out before another begins: the key "
                      "needs mon 'profile rbd', or somebody who may: ceph osd blocklist add {}; see "
                      "docs/formats/rados.md",
                      cluster_->name(), address, address));
    }
    if (status < 0) return std::unexpected(error_of(status, cluster_->name() + ": blocklisting its last writer"));
  }
  char* address = nullptr;
  if (const int status = ::rados_getaddrs(cluster_->handle(), &address); status < 0)
    return std::unexpected(error_of(status, cluster_->name() + ": our address"));
  record_ = {.number = last.number + 1, .open = true, .changes = 0, .address = address};
  std::free(address);
  WriteOp op;
  op.require(WriterRecord::kAttribute, LIBRADOS_CMPXATTR_OP_EQ, last.text());
  op.set(WriterRecord::kAttribute, record_.text());
  const int status = ::rados_write_op_operate(op.get(), cluster_->io(), cluster_->object().c_str(), nullptr,
                                              LIBRADOS_OPERATION_FULL_TRY);
  if (status == -ECANCELED) return not_ours(*cluster_);
  if (status < 0) return std::unexpected(error_of(status, cluster_->name() + ": becoming its writer"));
  return {};
}

Result<void> Lease::renew() {
  const int status = try_lock();
  if (status >= 0) return {};
  if (status == -EBUSY || status == -EEXIST) return not_ours(*cluster_);
  return std::unexpected(error_of(status, cluster_->name() + ": renewing its lock"));
}

/// What a change left behind that was not answered: it may have been made, or be made later, unless another one comes
/// before it.
Result<void> Lease::look_again() {
  WriterRecord found = UFFDA_TRY(WriterRecord::read(*cluster_));
  if (found.number != record_.number || found.address != record_.address || !found.open) return not_ours(*cluster_);
  record_ = std::move(found);
  doubtful_ = false;
  return {};
}

Result<void> Lease::store(const Header& header) {
  if (doubtful_) UFFDA_TRY_VOID(look_again());
  WriterRecord next = record_;
  next.changes = ++tried_;
  WriteOp op;
  op.require(WriterRecord::kAttribute, LIBRADOS_CMPXATTR_OP_EQ, record_.text());
  op.set(WriterRecord::kAttribute, next.text());
  op.write_full(encode(header));
  const int status = ::rados_write_op_operate(op.get(), cluster_->io(), cluster_->object().c_str(), nullptr,
                                              LIBRADOS_OPERATION_FULL_TRY);
  if (status >= 0) {
    record_ = std::move(next);
    return {};
  }
  doubtful_ = true;
  return std::unexpected(error_of(status, cluster_->name() + ": changing its header"));
}

void Lease::release() {
  WriterRecord closed = record_;
  closed.open = false;
  WriteOp op;
  op.require(WriterRecord::kAttribute, LIBRADOS_CMPXATTR_OP_EQ, record_.text());
  op.set(WriterRecord::kAttribute, closed.text());
  const int status = ::rados_write_op_operate(op.get(), cluster_->io(), cluster_->object().c_str(), nullptr, 0);
  if (status < 0 && status != -ECANCELED)
    log(LogLevel::warning, "{}", error_of(status, cluster_->name() + ": leaving it as its writer").message());
}

}  // namespace uffda::sources::rados
