// What every page source must do, as a suite: a source joins by adding its Case to source_contract.cpp.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "uffda/page_source.h"

namespace uffda::test {

/// Bytes that the tests ask remote sources for at once.
inline constexpr std::uint64_t kPiece = 65536;

/// A fresh file of the pattern in a directory of its own; both go with it.
class PatternFile {
 public:
  explicit PatternFile(std::uint64_t size);
  ~PatternFile();
  PatternFile(const PatternFile&) = delete;
  PatternFile& operator=(const PatternFile&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string beside(const std::string& name) const { return directory_ + "/" + name; }
  void resize(std::uint64_t size) const;
  /// Takes its bytes out of the page cache.
  void drop_cache() const;

 private:
  std::string directory_;
  std::string path_;
};

/// Hears the answer of one fetch, and how often it came.
class Answer final : public FetchOwner {
 public:
  /// Waits for the answer; a test that waits for longer than a minute has failed.
  Result<ByteCount> wait();
  [[nodiscard]] int count() const;
  /// Called in `fetched`, before the waiter wakes.
  std::function<void()> then;

  void fetched(void* request, Result<ByteCount> result) noexcept override;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Result<ByteCount>> result_;
  int count_ = 0;
};

/// Hears the answer of one write.
class WriteAnswer final : public WriteOwner {
 public:
  /// Waits for the answer; a test that waits for longer than a minute has failed.
  Result<void> wait();
  void written_back(void* request, Result<void> result) noexcept override;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Result<void>> result_;
};

/// Page-aligned memory.
class Buffer {
 public:
  explicit Buffer(std::size_t size);
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::unique_ptr<std::byte, void (*)(void*)> memory_;
  std::span<std::byte> bytes_;
};

inline Deadline soon() { return Deadline::after(std::chrono::minutes(1)); }

/// Starts a fetch of as many bytes as `buffer` has.
void start_fetch(PageSource& source, Answer& answer, std::uint64_t offset, std::span<std::byte> buffer,
                 Deadline deadline = soon());
/// The same, and waits for the answer.
Result<ByteCount> fetch(PageSource& source, std::uint64_t offset, std::span<std::byte> buffer,
                        Deadline deadline = soon());

/// A real server of the bytes of one file, stopped when it goes.
class SourceServer {
 public:
  virtual ~SourceServer() = default;
  [[nodiscard]] virtual std::string uri() const = 0;
};

struct SourceCase {
  std::string name;
  std::string uri;  ///< each '@' stands for the path of a file of the pattern, '#' for the URI of `serve`
  bool zeroes = false;
  /// Starts a server of the file. Errors: unsupported (the reason for skipping).
  std::function<Result<std::unique_ptr<SourceServer>>(const PatternFile&)> serve = nullptr;
};

inline constexpr std::uint64_t kSourceBytes = (std::uint64_t{1} << 20U) + 1234;  // the end is within a block

/// Opens the source of a Case; the test runs on its URI.
class SourceContract : public testing::TestWithParam<SourceCase> {
 protected:
  void SetUp() override;
  /// The first place where the bytes are not the source's.
  [[nodiscard]] std::optional<std::uint64_t> mismatch(std::span<const std::byte> bytes, std::uint64_t offset) const;

  PatternFile file_{kSourceBytes};
  std::unique_ptr<SourceServer> server_;
  std::unique_ptr<PageSource> source_;
};

}  // namespace uffda::test
