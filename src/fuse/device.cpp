#include "fuse/device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <span>
#include <vector>

#include "os/socket.h"

namespace uffda::fuse {

Result<os::UniqueFd> open_device() {
  const char* chosen = std::getenv("UFFDA_FUSE_DEVICE");
  const std::string path = chosen != nullptr ? chosen : "/dev/fuse";
  os::UniqueFd device(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (device) return device;
  switch (errno) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return fail(Errc::not_found,
                  path + " is not there: load the module with `modprobe fuse`, or give the container the device",
                  errno);
    case EACCES:
    case EPERM:
      return fail(Errc::permission_denied,
                  path + " may not be opened: run as root, or let everybody use it with `chmod 0666 " + path +
                      "` (as most distributions do), or install the package fuse3",
                  errno);
    default:
      return fail_errno(errno, "open " + path);
  }
}

Result<void> mount_device(int device, const std::string& path, uid_t owner, gid_t group) {
  // The root inode is the file itself (S_IFREG); allow_other lets programs in the namespace change their user.
  const std::string options = fmt::format("fd={},rootmode=100444,user_id={},group_id={},allow_other,max_read={}",
                                          device, owner, group, kMaxRead);
  if (::mount("uffda", path.c_str(), "fuse.uffda", MS_NOSUID | MS_NODEV, options.c_str()) == 0) return {};
  if (errno == EPERM || errno == EACCES) {
    return fail(Errc::permission_denied,
                "mounting on " + path + " is not permitted here: it needs root or a user namespace", errno);
  }
  return fail_errno(errno, "mount on " + path);
}

namespace {

/// fusermount3 with arguments; `channel` (-1: none) is where it sends the device. Returns its exit status, -1 if it did
/// not run.
int run_helper(const std::vector<std::string>& arguments, int channel) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<char*> words;
    std::string program = "fusermount3";
    words.push_back(program.data());
    for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
    words.push_back(nullptr);
    if (channel >= 0) {
      ::fcntl(channel, F_SETFD, 0);
      ::setenv("_FUSE_COMMFD", std::to_string(channel).c_str(), 1);
    }
    ::execvp("fusermount3", words.data());
    ::_exit(127);
  }
  int status = 0;
  while (child > 0 && ::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return child > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// The descriptor that fusermount3 sent, with one byte.
os::UniqueFd receive_device(int channel) {
  std::byte byte{};
  auto received = os::receive_packet(channel, std::span(&byte, 1), os::Waiting::none);
  return received ? std::move(received->descriptor) : os::UniqueFd();
}

}  // namespace

Result<os::UniqueFd> mount_for_everybody(const std::string& path, uid_t owner, gid_t group) {
  if (::geteuid() == 0) {
    os::UniqueFd device = UFFDA_TRY(open_device());
    UFFDA_TRY_VOID(mount_device(device.get(), path, owner, group));
    return device;
  }
  os::SocketPair channel = UFFDA_TRY(os::make_socket_pair());
  const std::string options = fmt::format("max_read={},nosuid,nodev,fsname=uffda,subtype=uffda", kMaxRead);
  const int status = run_helper({"-o", options, "--", path}, channel.second.get());
  channel.second.reset();
  if (status == 0) {
    if (os::UniqueFd device = receive_device(channel.first.get())) return device;
  }
  return fail(Errc::permission_denied, "fusermount3 did not mount on " + path +
                                           (status == 127 ? ": it is not installed (package fuse3)"
                                                          : ": it needs a file that you may write, and /dev/fuse"));
}

void detach_mount(const std::string& path) {
  if (::geteuid() == 0) {
    (void)::umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  } else {
    (void)run_helper({"-u", "-z", "-q", "--", path}, -1);
  }
}

}  // namespace uffda::fuse
