#include "modules/remote.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <map>
#include <optional>
#include <thread>

#include "modules/wire.h"
#include "os/memory.h"
#include "os/socket.h"

namespace uffda::modules {
namespace {

constexpr int kNaturalEndWait = 2000;  // ms for a process whose socket is closed to be gone, before it is killed

struct Reply {
  std::int64_t value = 0;
  std::vector<std::byte> extra;
  os::UniqueFd descriptor;
};

/// The module's process. Threads: any.
class Process : public std::enable_shared_from_this<Process> {
 public:
  static Result<std::shared_ptr<Process>> start(const std::string& path, const std::string& label,
                                                const std::string& command);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();

  /// Ends it, which fails what is asked of it.
  void end() {
    {
      const MutexLock lock(mutex_);
      closing_ = true;
    }
    ::shutdown(socket_.get(), SHUT_RDWR);
  }
  /// Asks and waits, for as long as it takes. Errors: what the module said, gone.
  Result<Reply> ask(Op op, const std::function<void(Writer&)>& put);

  /// Staging memory of one call.
  class Slot {
   public:
    explicit Slot(Process& process);
    ~Slot();
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;
    [[nodiscard]] std::uint64_t number() const { return number_; }
    [[nodiscard]] std::span<std::byte> bytes(std::size_t length) const {
      return process_.staging_.bytes().subspan(number_ * kSlot, length);
    }

   private:
    Process& process_;
    std::uint64_t number_;
  };

 private:
  Process(std::string label, pid_t pid, os::UniqueFd socket, os::MappedMemory staging)
      : label_(std::move(label)), pid_(pid), socket_(std::move(socket)), staging_(std::move(staging)) {
    free_slots_.reserve(kSlots);
    for (std::uint64_t i = 0; i < kSlots; ++i) free_slots_.push_back(i);
  }
  void receive_all();
  void take(std::span<const std::byte> packet, os::UniqueFd descriptor);
  void ended();

  const std::string label_;
  const pid_t pid_;
  const os::UniqueFd socket_;
  const os::MappedMemory staging_;
  Mutex mutex_;
  CondVar changed_;
  std::map<std::uint64_t, std::optional<Result<Reply>>> asked_ UFFDA_GUARDED_BY(mutex_);
  std::uint64_t next_ UFFDA_GUARDED_BY(mutex_) = 1;
  std::vector<std::uint64_t> free_slots_ UFFDA_GUARDED_BY(mutex_);
  std::optional<Error> end_ UFFDA_GUARDED_BY(mutex_);
  bool closing_ UFFDA_GUARDED_BY(mutex_) = false;
  std::thread receiver_;
};

Process::Slot::Slot(Process& process) : process_(process) {
  const MutexLock lock(process_.mutex_);
  while (process_.free_slots_.empty())
    process_.changed_.wait_until(process_.mutex_, Clock::now() + std::chrono::seconds(60));
  number_ = process_.free_slots_.back();
  process_.free_slots_.pop_back();
}

Process::Slot::~Slot() {
  const MutexLock lock(process_.mutex_);
  process_.free_slots_.push_back(number_);
  process_.changed_.notify_all();
}

/// The uffda command for the child: as given, this program if it is it, or on PATH.
Result<std::string> find_command(const std::string& given) {
  if (!given.empty()) return given;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (self.filename() == "uffda") return self.string();
  const char* path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "";
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(':'), rest.size());
    const std::string candidate = std::string(rest.substr(0, end)) + "/uffda";
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return fail(Errc::not_found, "an isolated module runs in a process of the uffda command, which is not on PATH");
}

/// High numbers, so that making them the child's does not overwrite one with the other.
Result<os::UniqueFd> lifted(int fd) {
  os::UniqueFd high(::fcntl(fd, F_DUPFD_CLOEXEC, 64));
  if (!high) return fail_errno(errno, "a descriptor for the module's process");
  return high;
}

Result<pid_t> spawn(const std::string& command, const std::string& path, int socket, int staging) {
  const os::UniqueFd high_socket = UFFDA_TRY(lifted(socket));
  const os::UniqueFd high_staging = UFFDA_TRY(lifted(staging));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, high_socket.get(), kChildSocket);
  posix_spawn_file_actions_adddup2(&actions, high_staging.get(), kChildStaging);
  posix_spawn_file_actions_addclosefrom_np(&actions, kChildStaging + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  // A group of its own: what a terminal sends is for the host, which ends it.
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  std::array<std::string, 4> words{"uffda", "module", "host", path};
  std::array<char*, 5> arguments{words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, command.c_str(), &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return fail_errno(error, "starting " + command);
  return pid;
}

Result<std::shared_ptr<Process>> Process::start(const std::string& path, const std::string& label,
                                                const std::string& command) {
  const std::string program = UFFDA_TRY(find_command(command));
  os::SocketPair sockets = UFFDA_TRY(os::make_socket_pair());
  const ByteCount size{kSlots * kSlot};
  const os::UniqueFd memory = UFFDA_TRY(os::create_memfd("uffda:module", size));
  os::MappedMemory staging = UFFDA_TRY(os::map_memory(size, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get()));
  const pid_t pid = UFFDA_TRY(spawn(program, path, sockets.second.get(), memory.get()));
  std::shared_ptr<Process> process(new Process(label, pid, std::move(sockets.first), std::move(staging)));
  process->receiver_ = std::thread([raw = process.get()] { raw->receive_all(); });
  return process;
}

Process::~Process() {
  end();
  if (receiver_.joinable()) receiver_.join();
}

Result<Reply> Process::ask(Op op, const std::function<void(Writer&)>& put) {
  Writer request;
  std::uint64_t id = 0;
  {
    const MutexLock lock(mutex_);
    if (end_) return std::unexpected(*end_);
    id = next_++;
    asked_.emplace(id, std::nullopt);
  }
  request.number(id).number(static_cast<std::uint64_t>(op));
  put(request);
  Result<void> sent = fail(Errc::invalid_argument, "its arguments are too long");
  if (request.bytes().size() <= kMaxPacket)
    sent = os::send_packet(socket_.get(), request.bytes(), {}, -1, os::Waiting::until);
  const MutexLock lock(mutex_);
  if (!sent && sent.error().code() != Errc::gone) {
    asked_.erase(id);
    return std::unexpected(sent.error());
  }
  while (!asked_[id] && !end_) changed_.wait_until(mutex_, Clock::now() + std::chrono::seconds(60));
  std::optional<Result<Reply>> reply = std::move(asked_[id]);
  asked_.erase(id);
  if (!reply) return std::unexpected(*end_);
  return *std::move(reply);
}

void Process::take(std::span<const std::byte> packet, os::UniqueFd descriptor) {
  Reader reader(packet);
  std::uint64_t id = reader.number();
  Result<std::int64_t> outcome = take_outcome(reader);
  const MutexLock lock(mutex_);
  // A process that could not load its module says so in a reply to nobody: to the first question.
  if (id == 0 && !asked_.empty() && !outcome) id = asked_.begin()->first;
  const auto found = asked_.find(id);
  if (found == asked_.end() || found->second) return;
  if (!outcome) {
    found->second.emplace(std::unexpected(outcome.error()));
  } else {
    const std::span<const std::byte> extra = reader.rest();
    found->second.emplace(
        Reply{.value = *outcome, .extra = {extra.begin(), extra.end()}, .descriptor = std::move(descriptor)});
  }
  changed_.notify_all();
}

void Process::receive_all() {
  std::vector<std::byte> buffer(kMaxPacket);
  while (true) {
    auto packet = os::receive_packet(socket_.get(), buffer, os::Waiting::until);
    if (!packet) return ended();
    take(std::span(buffer).first(packet->size), std::move(packet->descriptor));
  }
}

void Process::ended() {
  ::shutdown(socket_.get(), SHUT_RDWR);
  const os::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  pollfd entry{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  if (::poll(&entry, 1, kNaturalEndWait) != 1) (void)::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  const char* name = WIFSIGNALED(status) ? ::sigdescr_np(WTERMSIG(status)) : nullptr;
  const Error end(Errc::gone, WIFSIGNALED(status)
                                  ? fmt::format("its process was killed by signal {} ({})", WTERMSIG(status),
                                                name != nullptr ? name : "unknown")
                                  : fmt::format("its process ended with status {}", WEXITSTATUS(status)));
  bool closing = false;
  {
    const MutexLock lock(mutex_);
    end_ = end;
    closing = closing_;
  }
  changed_.notify_all();
  if (!closing) complain(label_, end.message());
}

/// Held by whoever may still ask something. With the last one the process ends, though calls may be inside it: those
/// hold the Process itself, and come back with its end.
struct Lease {
  explicit Lease(std::shared_ptr<Process> leased) : process(std::move(leased)) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() { process->end(); }
  const std::shared_ptr<Process> process;
};

class RemoteSource final : public SourceOps {
 public:
  RemoteSource(std::shared_ptr<Lease> lease, std::uint64_t object, bool asynchronous)
      : process_(lease->process), lease_(std::move(lease)), object_(object), asynchronous_(asynchronous) {}

  Result<SourceProperties> properties() override {
    const Reply reply = UFFDA_TRY(process_->ask(Op::properties, [&](Writer& writer) { writer.number(object_); }));
    Reader reader(reply.extra);
    SourceProperties properties{.size = {reader.number()},
                                .block_size = {reader.number()},
                                .preferred_read = {reader.number()},
                                .parallel = static_cast<unsigned>(std::min<std::uint64_t>(reader.number(), ~0U))};
    if (!reader.good()) return fail(Errc::protocol, "its process sent a reply that makes no sense");
    return properties;
  }

  Result<std::int64_t> fetch(ByteOffset offset, const std::shared_ptr<Bounce>& buffer) override {
    return fetch_parts(offset, buffer, Deadline::after(std::chrono::hours(1)));
  }
  void fetch_async(ByteOffset offset, const std::shared_ptr<Bounce>& buffer, Deadline deadline,
                   const Calls::Answer& answer) override {
    (void)answer(fetch_parts(offset, buffer, deadline));
  }
  Result<std::int64_t> close() override {
    return UFFDA_TRY(process_->ask(Op::close, [&](Writer& writer) { writer.number(object_); })).value;
  }
  void abandon() override { lease_.reset(); }

 private:
  Result<std::int64_t> fetch_parts(ByteOffset offset, const std::shared_ptr<Bounce>& buffer, Deadline deadline) {
    const auto until = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.when().time_since_epoch()).count();
    const std::span<std::byte> bytes = buffer->bytes();
    for (std::size_t done = 0; done < bytes.size();) {
      const Process::Slot slot(*process_);
      const std::size_t length = std::min<std::size_t>(bytes.size() - done, kSlot);
      const Reply reply = UFFDA_TRY(process_->ask(Op::fetch, [&](Writer& writer) {
        writer.number(object_).number(offset.value + done).number(length).number(slot.number());
        writer.number(asynchronous_ ? 1 : 0).number(static_cast<std::uint64_t>(until));
      }));
      if (reply.value != static_cast<std::int64_t>(length)) return reply.value < 0 ? -1 : reply.value;
      std::ranges::copy(slot.bytes(length), bytes.begin() + static_cast<std::ptrdiff_t>(done));
      done += length;
    }
    return static_cast<std::int64_t>(bytes.size());
  }

  const std::shared_ptr<Process> process_;
  std::shared_ptr<Lease> lease_;
  const std::uint64_t object_;
  const bool asynchronous_;
};

class RemoteSourceKind final : public SourceKind {
 public:
  RemoteSourceKind(std::shared_ptr<Lease> lease, std::uint64_t number, SourceAbout about)
      : lease_(std::move(lease)), number_(number), about_(std::move(about)) {}

  [[nodiscard]] const SourceAbout& about() const override { return about_; }
  Result<std::shared_ptr<SourceOps>> open(const Arguments& arguments) override {
    const Reply reply = UFFDA_TRY(lease_->process->ask(Op::open, [&](Writer& writer) {
      writer.number(number_).number(arguments.size());
      for (const auto& [key, value] : arguments) writer.text(key).text(value);
    }));
    return std::make_shared<RemoteSource>(lease_, static_cast<std::uint64_t>(reply.value), about_.asynchronous);
  }

 private:
  const std::shared_ptr<Lease> lease_;
  const std::uint64_t number_;
  const SourceAbout about_;
};

class RemoteMemory final : public MemoryOps {
 public:
  RemoteMemory(std::shared_ptr<Lease> lease, std::uint64_t object)
      : process_(lease->process), lease_(std::move(lease)), object_(object) {}

  Result<std::int64_t> publish(ByteOffset offset, const std::shared_ptr<Bounce>& bytes) override {
    const std::span<std::byte> all = bytes->bytes();
    for (std::size_t done = 0; done < all.size(); done += kSlot) {
      const Process::Slot slot(*process_);
      const auto part = all.subspan(done, std::min<std::size_t>(all.size() - done, kSlot));
      std::ranges::copy(part, slot.bytes(part.size()).begin());
      UFFDA_TRY(ask(Op::publish, [&](Writer& writer) {
        writer.number(offset.value + done).number(part.size()).number(slot.number());
      }));
    }
    return 0;
  }
  Result<std::int64_t> drop(ByteRange range) override {
    return ask(Op::drop, [&](Writer& writer) { writer.number(range.start.value).number(range.length.value); });
  }
  Result<std::int64_t> read(ByteOffset offset, const std::shared_ptr<Bounce>& buffer) override {
    const std::span<std::byte> bytes = buffer->bytes();
    if (bytes.size() > kSlot) return fail(Errc::out_of_range, "a read is larger than a slot");
    const Process::Slot slot(*process_);
    UFFDA_TRY(
        ask(Op::read, [&](Writer& writer) { writer.number(offset.value).number(bytes.size()).number(slot.number()); }));
    std::ranges::copy(slot.bytes(bytes.size()), bytes.begin());
    return 0;
  }
  Result<std::int64_t> look_up(FolioIndex index) override {
    return ask(Op::look_up, [&](Writer& writer) { writer.number(index); });
  }
  Result<os::UniqueFd> mapping() override { return descriptor(Op::mapping); }
  Result<os::UniqueFd> share() override { return descriptor(Op::share); }
  Result<std::int64_t> destroy() override {
    return ask(Op::destroy, [](Writer&) {});
  }
  void abandon() override { lease_.reset(); }

 private:
  Result<std::int64_t> ask(Op op, const std::function<void(Writer&)>& put) {
    return UFFDA_TRY(process_->ask(op,
                                   [&](Writer& writer) {
                                     writer.number(object_);
                                     put(writer);
                                   }))
        .value;
  }
  Result<os::UniqueFd> descriptor(Op op) {
    Reply reply = UFFDA_TRY(process_->ask(op, [&](Writer& writer) { writer.number(object_); }));
    if (!reply.descriptor) return fail(Errc::protocol, "its process sent no descriptor");
    return std::move(reply.descriptor);
  }

  const std::shared_ptr<Process> process_;
  std::shared_ptr<Lease> lease_;
  const std::uint64_t object_;
};

class RemoteTypeKind final : public TypeKind {
 public:
  RemoteTypeKind(std::shared_ptr<Lease> lease, std::uint64_t number, TypeAbout about)
      : lease_(std::move(lease)), number_(number), about_(std::move(about)) {}

  [[nodiscard]] const TypeAbout& about() const override { return about_; }
  Result<std::shared_ptr<MemoryOps>> create(std::uint64_t object, ByteCount size, const std::string& name) override {
    const Reply reply = UFFDA_TRY(lease_->process->ask(Op::create, [&](Writer& writer) {
      writer.number(number_).number(object).number(size.value).text(name.substr(0, 1024));
    }));
    return std::make_shared<RemoteMemory>(lease_, static_cast<std::uint64_t>(reply.value));
  }

 private:
  const std::shared_ptr<Lease> lease_;
  const std::uint64_t number_;
  const TypeAbout about_;
};

SourceAbout take_source(Reader& reader) {
  SourceAbout about{.name = reader.text(), .help = reader.text(), .example = reader.text()};
  about.parallel = reader.number() != 0;
  about.asynchronous = reader.number() != 0;
  const std::uint64_t parameters = reader.number();
  for (std::uint64_t i = 0; reader.good() && i < parameters; ++i) {
    std::string key = reader.text();
    about.parameters.push_back({.key = std::move(key), .help = reader.text()});
  }
  return about;
}

TypeAbout take_type(Reader& reader) {
  TypeAbout about{.name = reader.text(), .help = reader.text()};
  about.ops.modes = UffdModes::from_bits(reader.number());
  about.ops.ioctls = UffdIoctls::from_bits(reader.number());
  about.folio_size = reader.number();
  about.parallel = reader.number() != 0;
  about.shareable = reader.number() != 0;
  about.hook = reader.number() != 0;
  return about;
}

Result<Offers> ask_offers(const std::shared_ptr<Process>& process) {
  const Reply reply = UFFDA_TRY(process->ask(Op::offers, [](Writer&) {}));
  Reader reader(reply.extra);
  Offers offers;
  const auto lease = std::make_shared<Lease>(process);
  const std::uint64_t sources = reader.number();
  for (std::uint64_t i = 0; reader.good() && i < sources; ++i) {
    const SourceAbout about = take_source(reader);
    UFFDA_TRY_VOID(check_about(about));
    offers.sources.push_back(std::make_shared<RemoteSourceKind>(lease, i, about));
  }
  const std::uint64_t types = reader.number();
  for (std::uint64_t i = 0; reader.good() && i < types; ++i) {
    const TypeAbout about = take_type(reader);
    UFFDA_TRY_VOID(check_about(about));
    offers.types.push_back(std::make_shared<RemoteTypeKind>(lease, i, about));
  }
  if (!reader.good()) return fail(Errc::protocol, "its process sent a reply that makes no sense");
  return offers;
}

}  // namespace

Result<Offers> load_remote(const std::string& path, const std::string& label, const ModuleOptions& options) {
  const std::shared_ptr<Process> process = UFFDA_TRY(Process::start(path, label, options.command));
  Calls calls(label, 1, Calls::Lost::all);
  const auto offers = make_in_time<Offers>(
      calls, "load", options.deadline,
      [process]() -> Result<std::shared_ptr<Offers>> {
        return std::make_shared<Offers>(UFFDA_TRY(ask_offers(process)));
      },
      [](Offers&) {});
  if (!offers) {
    process->end();
    return std::unexpected(offers.error());
  }
  return std::move(**offers);
}

}  // namespace uffda::modules
