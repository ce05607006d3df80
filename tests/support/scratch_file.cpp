#include "support/scratch_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "support/test_support.h"

namespace uffda::test {

ScratchFile::ScratchFile(std::uint64_t size, std::string directory) : size_(size) {
  if (directory.empty()) directory = testing::TempDir();
  path_ = directory + "/uffda-scratch-XXXXXX";
  fd_ = ::mkstemp(path_.data());
  EXPECT_GE(fd_, 0) << path_;
  std::vector<std::byte> bytes(1 << 20);
  for (std::uint64_t at = 0; at < size; at += bytes.size()) {
    const std::uint64_t length = std::min<std::uint64_t>(bytes.size(), size - at);
    Pattern::fill(std::span(bytes).first(length), at);
    EXPECT_EQ(::pwrite(fd_, bytes.data(), length, static_cast<off_t>(at)), static_cast<ssize_t>(length));
  }
}

ScratchFile::~ScratchFile() {
  ::close(fd_);
  ::unlink(path_.c_str());
}

std::vector<std::byte> ScratchFile::contents() const {
  std::vector<std::byte> bytes(size_);
  for (std::uint64_t at = 0; at < size_;) {
    const ssize_t got = ::pread(fd_, bytes.data() + at, size_ - at, static_cast<off_t>(at));
    if (got <= 0) break;
    at += static_cast<std::uint64_t>(got);
  }
  struct stat status{};
  EXPECT_EQ(::fstat(fd_, &status), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_size), size_) << "the file keeps its size";
  return bytes;
}

}  // namespace uffda::test
