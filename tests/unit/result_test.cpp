#include "uffda/result.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace uffda {
namespace {

TEST(Error, takes_code_and_words_from_errno) {
  const Error error = Error::from_errno(ENOENT, "open /x");
  EXPECT_EQ(error.code(), Errc::not_found);
  EXPECT_EQ(error.sys_errno(), ENOENT);
  EXPECT_EQ(error.context(), "open /x: No such file or directory");
  EXPECT_EQ(error.message(), "open /x: No such file or directory (not_found)");
}

TEST(Error, maps_what_a_caller_can_act_on_and_calls_the_rest_io) {
  const std::pair<int, Errc> pairs[] = {{EINVAL, Errc::invalid_argument},
                                        {EEXIST, Errc::already_exists},
                                        {ENOSYS, Errc::unsupported},
                                        {EPERM, Errc::permission_denied},
                                        {EBUSY, Errc::busy},
                                        {EAGAIN, Errc::again},
                                        {ETIMEDOUT, Errc::timed_out},
                                        {ENOMEM, Errc::no_memory},
                                        {EMFILE, Errc::no_memory},
                                        {ESRCH, Errc::gone},
                                        {EPIPE, Errc::gone},
                                        {EPROTO, Errc::protocol},
                                        {EIO, Errc::io},
                                        {ENOTBLK, Errc::io}};
  for (const auto& [number, code] : pairs) EXPECT_EQ(Error::from_errno(number, "x").code(), code) << number;
}

TEST(Error, says_the_number_of_an_unknown_errno) {
  EXPECT_EQ(Error::from_errno(99999, "x").context(), "x: errno 99999");
}

TEST(Error, puts_outer_context_in_front) {
  const Error inner(Errc::io, "short read", EIO);
  const Error outer = inner.within("file:x");
  EXPECT_EQ(outer.context(), "file:x: short read");
  EXPECT_EQ(outer.code(), Errc::io);
  EXPECT_EQ(outer.sys_errno(), EIO);
  EXPECT_EQ(Error(Errc::io).within("file:x").context(), "file:x");
}

TEST(Error, is_one_line_with_and_without_context) {
  EXPECT_EQ(Error(Errc::timed_out).message(), "timed_out");
  EXPECT_EQ(Error(Errc::io, {}, EIO).message(), "io: Input/output error");
  EXPECT_EQ(Error(Errc::io, "bad").message(), "bad (io)");
}

TEST(Errc, has_a_name_for_every_code) {
  for (int code = 0; code <= static_cast<int>(Errc::protocol); ++code) {
    EXPECT_NE(to_string(static_cast<Errc>(code)), "unknown") << code;
  }
}

Result<int> half(int value) {
  if (value % 2 != 0) return fail(Errc::invalid_argument, "odd");
  return value / 2;
}
Result<int> quarter(int value) { return UFFDA_TRY(half(UFFDA_TRY(half(value)))); }
Result<void> check_quarter(int value) {
  UFFDA_TRY_VOID(quarter(value));
  return {};
}

TEST(Try, gives_the_value_or_returns_the_error) {
  EXPECT_EQ(*quarter(12), 3);
  EXPECT_EQ(quarter(6).error().context(), "odd");
  EXPECT_TRUE(check_quarter(4).has_value());
  EXPECT_EQ(check_quarter(5).error().code(), Errc::invalid_argument);
}

}  // namespace
}  // namespace uffda
