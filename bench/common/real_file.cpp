#include "common/real_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <random>
#include <thread>
#include <vector>

#include "common/bench.h"

extern char** environ;

namespace bench {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20U;

bool has_size(const std::string& path, std::size_t bytes) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 && static_cast<std::size_t>(status.st_size) == bytes;
}

void make_file(const std::string& path, std::size_t bytes) {
  Report::progress(fmt::format("making {} ({} MiB)", path, bytes >> 20U));
  const std::string unfinished = path + ".new";
  const int fd = ::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  check(fd >= 0, unfinished);
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> block(kBlock / sizeof(std::uint64_t));
  for (std::size_t done = 0; done < bytes; done += kBlock) {
    std::ranges::generate(block, random);
    check(::write(fd, block.data(), kBlock) == static_cast<ssize_t>(kBlock), "writing the benchmark's file");
  }
  check(::fsync(fd) == 0 && ::close(fd) == 0 && ::rename(unfinished.c_str(), path.c_str()) == 0, unfinished);
}

/// Runs a command to its end. Its exit status, or -1.
int run(const std::vector<std::string>& command) {
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = -1;
  const int error = ::posix_spawnp(&child, arguments.front(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  int status = -1;
  if (error != 0 || ::waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

RealFile::RealFile(std::string path, std::size_t bytes) : path_(std::move(path)), bytes_(bytes) {
  if (!has_size(path_, bytes_)) make_file(path_, bytes_);
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd_ >= 0, path_);
}

RealFile::~RealFile() { ::close(fd_); }

void RealFile::drop() const {
  check(::fdatasync(fd_) == 0 && ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED) == 0, "dropping the page cache");
  void* const memory = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, fd_, 0);
  check(memory != MAP_FAILED, "mmap");
  std::vector<unsigned char> resident(bytes_ / kPage);
  check(::mincore(memory, bytes_, resident.data()) == 0, "mincore");
  ::munmap(memory, bytes_);
  const auto left = std::ranges::count_if(resident, [](unsigned char page) { return (page & 1U) != 0; });
  if (static_cast<std::size_t>(left) > resident.size() / 1000) {
    die(fmt::format("{} of {} pages of {} stay in the page cache: nothing cold can be measured", left, resident.size(),
                    path_));
  }
}

void RealFile::cache(std::size_t bytes) const {
  std::vector<std::byte> block(kBlock);
  for (std::size_t at = 0; at < bytes; at += kBlock) {
    check(::pread(fd_, block.data(), kBlock, static_cast<off_t>(at)) == static_cast<ssize_t>(kBlock), "pread");
  }
}

PlainMapping::PlainMapping(const std::string& path, std::size_t bytes, Advice advice) : bytes_(bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, path);
  void* const memory = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, fd, 0);
  check(memory != MAP_FAILED, "mmap");
  ::close(fd);
  data_ = static_cast<std::byte*>(memory);
  if (advice == Advice::random) check(::madvise(memory, bytes_, MADV_RANDOM) == 0, "MADV_RANDOM");
}

PlainMapping::~PlainMapping() { ::munmap(data_, bytes_); }

std::optional<std::string> NbdFuse::cannot() {
  if (run({"nbdfuse", "--version"}) != 0) return "nbdfuse is not installed (package libnbd-bin)";
  if (run({"nbdkit", "--version"}) != 0) return "nbdkit is not installed";
  if (::access("/dev/fuse", R_OK | W_OK) != 0) return "/dev/fuse is not accessible";
  return std::nullopt;
}

NbdFuse::NbdFuse(const std::string& directory, const std::string& file) : directory_(directory) {
  run({"fusermount3", "-u", "-z", directory_});  // of a run that was killed
  std::filesystem::create_directories(directory_);
  const std::string whole = std::filesystem::absolute(file).string();
  std::vector<std::string> command{"nbdfuse", "-r",   path(), "[", "nbdkit", "--exit-with-parent",
                                   "-r",      "file", whole,  "]"};
  std::vector<char*> arguments;
  for (std::string& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  if (::posix_spawnp(&child_, "nbdfuse", nullptr, nullptr, arguments.data(), environ) != 0) return;
  constexpr int kTries = 500;
  for (int i = 0; i < kTries && !started_; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    started_ = ::access(path().c_str(), R_OK) == 0;
  }
}

NbdFuse::~NbdFuse() {
  run({"fusermount3", "-u", "-z", directory_});
  if (child_ > 0) ::waitpid(child_, nullptr, 0);
}

void NbdFuse::drop() const {
  const int fd = ::open(path().c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0 && ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "dropping the page cache of the FUSE mount");
  ::close(fd);
}

}  // namespace bench
