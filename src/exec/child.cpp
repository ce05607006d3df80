#include "exec/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "exec/rewriting.h"
#include "exec/say.h"
#include "fuse/device.h"

namespace uffda::exec {

namespace fs = std::filesystem;

namespace {

constexpr int kSetUpFailed = 125;
constexpr int kCannotRun = 126;
constexpr int kNotFound = 127;

Result<void> write_file(const char* path, const std::string& text) {
  const os::UniqueFd file(::open(path, O_WRONLY | O_CLOEXEC));
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return fail_errno(errno, path);
  return {};
}

/// A mount namespace of our own. Mounts of the system still arrive in it; ours stay inside.
Result<void> enter_namespace() {
  const uid_t user = ::geteuid();
  const gid_t group = ::getegid();
  if (user == 0 && ::unshare(CLONE_NEWNS) == 0) {
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) return fail_errno(errno, "mount propagation");
    return {};
  }
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
    return fail(Errc::permission_denied,
                "neither a mount namespace (CAP_SYS_ADMIN) nor a user namespace (sysctl user.max_user_namespaces, "
                "kernel.unprivileged_userns_clone, the container's seccomp profile) can be made here",
                errno);
  }
  UFFDA_TRY_VOID(write_file("/proc/self/setgroups", "deny"));
  UFFDA_TRY_VOID(write_file("/proc/self/uid_map", fmt::format("{0} {0} 1\n", user)));
  return write_file("/proc/self/gid_map", fmt::format("{0} {0} 1\n", group));
}

Result<void> mount_all(const ChildSetup& setup, int host) {
  UFFDA_TRY_VOID(enter_namespace());
  std::int32_t index = 0;
  for (const ResolvedMap& map : *setup.maps) {
    const os::UniqueFd device = UFFDA_TRY(fuse::open_device());
    UFFDA_TRY_VOID(fuse::mount_device(device.get(), map.mount_path, ::geteuid(), ::getegid()));
    if (!tell(host, {.what = Say::kDevice, .value = index++}, device.get()))
      return fail(Errc::gone, "the host is gone");
  }
  return {};
}

/// What the shim recognises the files by (src/preload/config.h): major:minor:inode:size:mode:name, joined by
/// semicolons; the mode is 0 (read-only), 1 (writable) or 2 (copy on write), and the size of a file that grows is 0.
int shim_mode(const ResolvedMap& map) { return map.is_written_to() ? 1 : map.mode == MapMode::cow ? 2 : 0; }

Result<std::string> describe_maps(const std::vector<ResolvedMap>& maps) {
  std::string text;
  for (const ResolvedMap& map : maps) {
    struct stat file{};
    if (::stat(map.mount_path.c_str(), &file) != 0) return fail_errno(errno, map.mount_path);
    text += fmt::format("{}{}:{}:{}:{}:{}:{}", text.empty() ? "" : ";", gnu_dev_major(file.st_dev),
                        gnu_dev_minor(file.st_dev), file.st_ino, map.mode == MapMode::growable ? 0 : file.st_size,
                        shim_mode(map), map.name);
  }
  return text;
}

void set_environment(const ChildSetup& setup, const std::string& maps) {
  if (setup.relay_socket.empty() || setup.shim.empty()) return;
  ::setenv("UFFDA_SHIM_SOCKET", setup.relay_socket.c_str(), 1);
  ::setenv("UFFDA_SHIM_MAPS", maps.c_str(), 1);
  const std::string rules = rewriting_rules(*setup.maps, std::getenv("UFFDA_SHIM_PATHS"));
  if (!rules.empty()) ::setenv("UFFDA_SHIM_PATHS", rules.c_str(), 1);
  const char* before = std::getenv("LD_PRELOAD");
  const std::string others = before != nullptr ? before : "";
  if (others.find(setup.shim) != std::string::npos) return;
  ::setenv("LD_PRELOAD", (others.empty() ? setup.shim : setup.shim + ":" + others).c_str(), 1);
}

[[noreturn]] void run(const ChildSetup& setup) {
  ::sigprocmask(SIG_SETMASK, &setup.signal_mask, nullptr);
  std::vector<char*> words;
  words.reserve(setup.program.size() + 1);
  for (const std::string& word : setup.program) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execvp(words[0], words.data());
  const int error = errno;
  say("cannot run '{}': {}", setup.program[0], ::strerror(error));
  ::_exit(error == ENOENT || error == ENOTDIR ? kNotFound : kCannotRun);
}

}  // namespace

void become_program(const ChildSetup& setup, int host) {
  if (setup.where == Namespace::own) {  // else the host has mounted and serves already
    if (auto mounted = mount_all(setup, host); !mounted) {
      (void)tell(host, failure(Say::kNoMount, mounted.error()));
      ::_exit(kSetUpFailed);
    }
    const auto answer = hear(host);
    if (!answer || answer->what != Say::kGo) ::_exit(kSetUpFailed);
  }
  const auto maps = describe_maps(*setup.maps);
  if (!maps) {
    say("{}", maps.error().message());
    ::_exit(kSetUpFailed);
  }
  set_environment(setup, *maps);
  run(setup);
}

std::string find_shim() {
  std::error_code error;
  const fs::path command = fs::read_symlink("/proc/self/exe", error);
  if (error) return {};
  for (const fs::path& directory : {command.parent_path(), command.parent_path() / "../lib/uffda"}) {
    const fs::path shim = directory / "libuffda-shim.so";
    if (fs::exists(shim, error)) return fs::canonical(shim, error).string();
  }
  return {};
}

}  // namespace uffda::exec
