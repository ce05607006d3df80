#include "exec/host.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fmt/format.h>
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <memory>
#include <optional>
#include <ranges>

#include "exec/channel.h"
#include "exec/kept_faults.h"
#include "exec/paths.h"
#include "exec/relay.h"
#include "exec/report.h"
#include "exec/rewriting.h"
#include "exec/say.h"
#include "exec/service.h"
#include "fuse/device.h"
#include "fuse/file_host.h"

namespace uffda::exec {

namespace fs = std::filesystem;

namespace {

constexpr int kTickMilliseconds = 1000;  // how often the dead are looked for

class Host {
 public:
  Host(const HostSetup& setup, os::UniqueFd supervisor, os::UniqueFd program)
      : setup_(setup), maps_(setup.maps), supervisor_(std::move(supervisor)), program_(std::move(program)) {}

  void run();

 private:
  Result<void> prepare();
  Result<void> prepare_mount_point(std::size_t index);
  Result<void> start_program();
  Result<std::vector<os::UniqueFd>> receive_devices();
  Result<void> mount_plain(const Error& why);

  void serve();
  void hear_supervisor();
  void hear_server();
  void program_ended();
  [[nodiscard]] bool in_use();
  void write_report();
  void clean_up();

  const HostSetup& setup_;
  std::vector<ResolvedMap> maps_;
  os::UniqueFd supervisor_;
  os::UniqueFd program_;
  std::optional<int> refused_status_;  // of a server that did not start
  std::optional<PrivateDirectory> directory_;
  std::vector<MountPoint> mount_points_;
  std::unique_ptr<KeptFaults> kept_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<Relay> relay_;
  std::vector<std::unique_ptr<fuse::FileHost>> files_;
  TimePoint started_ = Clock::now();
  TimePoint ended_ = Clock::now();
  std::optional<int> wait_status_;
  bool program_ended_ = false;
  bool server_died_ = false;
};

/// The terminal's signals are for the program, and so is its input; what it prints must not wait for us.
void leave_terminal() {
  (void)::setpgid(0, 0);
  for (const int number : {SIGINT, SIGQUIT, SIGHUP, SIGTSTP, SIGTTOU, SIGTTIN, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM}) {
    (void)std::signal(number, SIG_IGN);
  }
  (void)std::signal(SIGTERM, SIG_IGN);  // ends with its users, not before them
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  (void)::dup2(null, STDIN_FILENO);
  (void)::dup2(null, STDOUT_FILENO);
  if (null > STDERR_FILENO) (void)::close(null);
  (void)::prctl(PR_SET_NAME, "uffda-host");
  // One descriptor for each address space and each connection.
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

Result<void> Host::prepare_mount_point(std::size_t index) {
  ResolvedMap& map = maps_[index];
  auto point = MountPoint::prepare(map.path);
  if (!point && point.error().code() == Errc::permission_denied) {
    // A directory for each: two may have the same name.
    map.mount_path = fmt::format("{}/{}/{}", directory_->path(), index, fs::path(map.path).filename().string());
    UFFDA_TRY_VOID(check_rewriting(map, *setup_.options, point.error()));
    Message message{.what = Say::kElsewhere, .value = static_cast<std::int32_t>(index), .text = {}};
    if (map.mount_path.size() >= message.text.size()) return std::unexpected(point.error());
    map.mount_path.copy(message.text.data(), message.text.size() - 1);
    say("{} cannot be made: programs find it by the preloaded library; static and set-uid ones only if you create it "
        "(an empty file) first",
        map.path);
    (void)tell(supervisor_.get(), message);
    point = MountPoint::prepare(map.mount_path);
  }
  mount_points_.push_back(UFFDA_TRY(std::move(point)));
  return {};
}

Result<void> Host::prepare() {
  directory_ = UFFDA_TRY(PrivateDirectory::create());
  kept_ = UFFDA_TRY(KeptFaults::create());
  for (std::size_t i = 0; i < maps_.size(); ++i) UFFDA_TRY_VOID(prepare_mount_point(i));
  ServiceSetup service{.maps = maps_,
                       .server_socket = setup_.options->server_socket,
                       .own_socket = directory_->file("server.sock"),
                       .server_arguments = setup_.options->server_arguments};
  service_ = UFFDA_TRY(Service::open(std::move(service), refused_status_));
  const auto refused = [](const std::string& text) { say("{}: memory is served through FUSE, slower", text); };
  relay_ = UFFDA_TRY(Relay::listen(directory_->file("shim.sock"), service_->socket(), *kept_, refused));
  return {};
}

Result<std::vector<os::UniqueFd>> Host::receive_devices() {
  std::vector<os::UniqueFd> devices;
  while (devices.size() < maps_.size()) {
    os::UniqueFd device;
    const auto message = hear(program_.get(), &device);
    if (!message) return fail(Errc::gone, "the child process ended before it could mount");
    if (message->what == Say::kNoMount) return std::unexpected(error_of(*message));
    if (message->what != Say::kDevice || !device) return fail(Errc::protocol, "the child process sent no device");
    devices.push_back(std::move(device));
  }
  return devices;
}

Result<void> Host::mount_plain(const Error& why) {
  for (std::size_t i = 0; i < maps_.size(); ++i) {
    auto file = fuse::FileHost::mount(maps_[i].mount_path, service_->file_options(i, ::geteuid(), ::getegid()));
    if (!file) return fail(file.error().code(), why.context() + "; and " + file.error().context());
    files_.push_back(std::move(*file));
  }
  (void)tell(supervisor_.get(), {.what = Say::kStartPlain});
  return {};
}

Result<void> Host::start_program() {
  auto devices = receive_devices();
  if (!devices) {
    const Error& why = devices.error();
    if (why.code() == Errc::gone || why.code() == Errc::protocol) return std::unexpected(why);
    return mount_plain(why);
  }
  for (std::size_t i = 0; i < devices->size(); ++i) {
    auto options = service_->file_options(i, ::geteuid(), ::getegid());
    files_.push_back(UFFDA_TRY(fuse::FileHost::serve(std::move((*devices)[i]), std::move(options))));
  }
  (void)tell(supervisor_.get(), {.what = Say::kStarted});
  (void)tell(program_.get(), {.what = Say::kGo});
  program_.reset();
  return {};
}

void Host::program_ended() {
  if (program_ended_) return;
  program_ended_ = true;
  ended_ = Clock::now();
  for (const auto& file : files_) file->unmount();  // only where it is mounted for everybody
}

void Host::hear_supervisor() {
  const auto message = hear(supervisor_.get());
  if (message && message->what == Say::kEnded) wait_status_ = message->value;
  program_ended();
  if (message && message->what == Say::kEnded) {
    // Whatever the program left behind that still writes.
    service_->store_all();
    (void)tell(supervisor_.get(), {.what = Say::kStored});
  }
  if (message) return;
  // It has gone, and with it whoever waits for our standard error to be closed.
  supervisor_.reset();
  const os::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  (void)::dup2(null.get(), STDERR_FILENO);
}

void Host::hear_server() {
  const Service::News news = service_->hear();
  if (news == Service::News::none) return;
  if (setup_.options->on_error == OnError::kill) (void)tell(supervisor_.get(), {.what = Say::kKill});
  if (news == Service::News::server_gone) {
    server_died_ = true;
    kept_->poison_from_now_on();
  }
}

bool Host::in_use() {
  if (!program_ended_) return true;
  for (const auto& file : files_) {
    pollfd ended{.fd = file->ended_descriptor(), .events = POLLIN, .revents = 0};
    if (::poll(&ended, 1, 0) == 0) return true;
  }
  return kept_->forget_dead() != 0;
}

void Host::serve() {
  while (in_use()) {
    std::vector<pollfd> entries{{.fd = supervisor_.get(), .events = POLLIN, .revents = 0},
                                {.fd = service_->watch_descriptor(), .events = POLLIN, .revents = 0},
                                {.fd = service_->message_descriptor(), .events = POLLIN, .revents = 0}};
    for (const auto& file : files_) {
      // While the program runs, a file's end (somebody unmounted it) changes nothing.
      entries.push_back({.fd = program_ended_ ? file->ended_descriptor() : -1, .events = POLLIN, .revents = 0});
      pollfd ended{.fd = file->ended_descriptor(), .events = POLLIN, .revents = 0};
      if (::poll(&ended, 1, 0) > 0) entries.back().fd = -1;
    }
    if (::poll(entries.data(), entries.size(), kTickMilliseconds) < 0) continue;
    if (entries[0].revents != 0) hear_supervisor();
    if (entries[2].revents != 0) service_->forward_messages();
    if (entries[1].revents != 0) hear_server();
  }
}

void Host::write_report() {
  if (setup_.options->report_file.empty()) return;
  ExecFacts facts{.program = setup_.options->program,
                  .wait_status = wait_status_,
                  .elapsed = ended_ - started_,
                  .maps = service_->maps(),
                  .counts = {},
                  .address_spaces = kept_->ever_kept(),
                  .server_died = server_died_};
  for (const auto& file : files_) facts.counts.push_back(file->counts());
  const auto written = exec::write_report(setup_.options->report_file, service_->stats(), facts);
  if (!written) say("{}", written.error().message());
}

void Host::clean_up() {
  relay_.reset();
  files_.clear();
  if (service_) service_->store_all();
  if (service_) service_->close();
  service_.reset();
  kept_.reset();
  // The last first: what was made for the first may be the directory of the others.
  for (MountPoint& point : std::views::reverse(mount_points_)) point.remove();
  directory_.reset();
}

void Host::run() {
  Result<void> ready = prepare();
  if (ready) {
    Message message{.what = Say::kReady};
    const std::string relay = directory_->file("shim.sock");
    relay.copy(message.text.data(), message.text.size() - 1);
    (void)tell(supervisor_.get(), message);
    started_ = Clock::now();
    ready = start_program();
  }
  program_.reset();
  if (ready) {
    serve();
    write_report();
  }
  clean_up();
  if (ready) {
    (void)tell(supervisor_.get(), {.what = Say::kDone});
  } else if (refused_status_) {
    (void)tell(supervisor_.get(), {.what = Say::kExit, .value = *refused_status_});
  } else {
    (void)tell(supervisor_.get(), failure(Say::kFailed, ready.error()));
  }
}

}  // namespace

void run_host(const HostSetup& setup, os::UniqueFd supervisor, os::UniqueFd program) {
  leave_terminal();
  {
    Host host(setup, std::move(supervisor), std::move(program));
    host.run();
  }
  ::_exit(0);
}

}  // namespace uffda::exec
