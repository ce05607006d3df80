// A file of the pattern, which goes with its object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace uffda::test {

class ScratchFile {
 public:
  explicit ScratchFile(std::uint64_t size, std::string directory = {});
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile();
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string uri(const std::string& layers = {}, const std::string& query = {}) const {
    return layers + "file:" + path_ + query;
  }
  /// What it holds. It has to have the size it was made with.
  [[nodiscard]] std::vector<std::byte> contents() const;

 private:
  std::uint64_t size_;
  std::string path_;
  int fd_ = -1;
};

}  // namespace uffda::test
