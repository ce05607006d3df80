// Shared by the tests of the http source.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "contract/source_contract.h"
#include "support/fake_http.h"
#include "support/test_support.h"

namespace uffda::test {

inline Deadline within_ms(int ms) { return Deadline::after(std::chrono::milliseconds(ms)); }

inline std::unique_ptr<PageSource> opened(const std::string& uri) {
  auto source = open_source(uri);
  EXPECT_TRUE(source.has_value()) << source.error().message();
  return source ? std::move(*source) : nullptr;
}

inline void expect_refused(const std::string& uri, Errc code, const std::string& words) {
  const auto source = open_source(uri);
  ASSERT_FALSE(source.has_value()) << uri;
  EXPECT_EQ(source.error().code(), code) << source.error().message();
  EXPECT_NE(source.error().context().find(words), std::string::npos) << source.error().context();
}

/// Fetches 4096 bytes and expects them to be right.
inline void expect_right(PageSource& source, std::uint64_t offset, Deadline deadline = soon()) {
  const Buffer buffer(4096);
  const auto done = fetch(source, offset, buffer.bytes(), deadline);
  ASSERT_TRUE(done.has_value()) << done.error().message();
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), offset), std::nullopt);
}

/// Fetches 4096 bytes and expects an error; what lies behind the buffer is left alone.
inline void expect_failed(PageSource& source, Errc code, const std::string& words, Deadline deadline = soon()) {
  const Buffer buffer(8192);
  const auto done = fetch(source, 65536, buffer.bytes().first(4096), deadline);
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), code) << done.error().message();
  EXPECT_NE(done.error().context().find(words), std::string::npos) << done.error().context();
  for (const std::byte behind : buffer.bytes().subspan(4096)) ASSERT_EQ(behind, std::byte{0xA5});
}

/// An environment variable while this lives.
class Variable {
 public:
  Variable(std::string name, const std::string& value) : name_(std::move(name)) {
    if (const char* const old = std::getenv(name_.c_str())) before_ = old;
    ::setenv(name_.c_str(), value.c_str(), 1);
  }
  ~Variable() {
    if (before_) {
      ::setenv(name_.c_str(), before_->c_str(), 1);
    } else {
      ::unsetenv(name_.c_str());
    }
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  std::string name_;
  std::optional<std::string> before_;
};

}  // namespace uffda::test
