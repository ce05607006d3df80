// Opening sources: what is refused, and with which words; the registry.
#include <gtest/gtest.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <string>
#include <thread>

#include "contract/source_contract.h"
#include "support/test_support.h"
#include "uffda/source_registry.h"

namespace uffda::test {
namespace {

Error error_of(const std::string& uri) {
  const auto source = open_source(uri);
  EXPECT_FALSE(source.has_value()) << uri;
  return source ? Error(Errc::io) : source.error();
}

void expect_error(const std::string& uri, Errc code, const std::string& words) {
  const Error error = error_of(uri);
  EXPECT_EQ(error.code(), code) << error.message();
  EXPECT_NE(error.context().find(words), std::string::npos) << error.context();
}

TEST(OpenFile, refuses_what_has_no_bytes_to_map) {
  const PatternFile file(0);
  expect_error("file:" + file.path(), Errc::invalid_argument, "is empty");
  expect_error("file:/tmp", Errc::invalid_argument, "is a directory");
  expect_error("file:/dev/null", Errc::invalid_argument, "is a character device");
  expect_error("file:", Errc::invalid_argument, "needs a path");
  expect_error("file:/no/such/file", Errc::not_found, "/no/such/file");
}

TEST(OpenFile, refuses_a_pipe_without_waiting_for_a_writer) {
  const PatternFile file(4096);
  const std::string pipe = file.beside("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_error("file:" + pipe, Errc::invalid_argument, "is a pipe");
}

TEST(OpenFile, takes_any_path_when_it_is_escaped) {
  const PatternFile file(5000);
  const std::string odd = file.beside("a?b%c&d");
  ASSERT_EQ(::rename(file.path().c_str(), odd.c_str()), 0);
  const auto source = open_source("file:" + file.beside("a%3Fb%25c&d"));
  ASSERT_TRUE(source.has_value()) << source.error().message();
  EXPECT_EQ((*source)->properties().size.value, 5000U);
}

TEST(OpenFile, falls_back_from_direct_where_the_file_system_refuses_only_if_allowed) {
  // A file of sysfs: it has a size, but no O_DIRECT.
  const std::string path = "/sys/kernel/notes";
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0 || status.st_size == 0) GTEST_SKIP() << path << " is not there";
  expect_error("file:" + path + "?direct=on", Errc::unsupported, "O_DIRECT");
  EXPECT_TRUE(open_source("file:" + path + "?direct=auto").has_value());
}

/// From now on io_uring_setup gives EPERM in the calling thread, as in many containers.
void refuse_io_uring() {
  const sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{std::size(filter), const_cast<sock_filter*>(filter)};
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

TEST(OpenFile, reads_with_threads_where_io_uring_is_refused_unless_it_is_insisted_on) {
  const PatternFile file(200000);
  // A thread of its own, which takes the filter with it when it ends.
  std::thread([&file] {
    refuse_io_uring();
    expect_error("file:" + file.path() + "?io=uring", Errc::permission_denied, "io_uring_disabled");
    const auto source = open_source("file:" + file.path());
    ASSERT_TRUE(source.has_value()) << source.error().message();
    const Buffer buffer(200000);
    file.drop_cache();
    ASSERT_TRUE(fetch(**source, 0, buffer.bytes()).has_value());
    EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 0), std::nullopt);
  }).join();
}

TEST(OpenZero, refuses_sizes_that_are_none) {
  expect_error("zero:0", Errc::invalid_argument, "must not be 0");
  expect_error("zero:", Errc::invalid_argument, "not a size");
  expect_error("zero:lots", Errc::invalid_argument, "not a size");
  expect_error("zero:8E", Errc::invalid_argument, "not a size");
}

TEST(OpenSource, names_the_known_schemes_layers_and_parameters) {
  for (const char* known : {"known are ", "file", "zero"}) expect_error("fiel:x", Errc::not_found, known);
  for (const char* known : {"known are ", "delay", "error", "log"})
    expect_error("slow+zero:1M", Errc::not_found, known);
  expect_error("file:/tmp?dirct=on", Errc::invalid_argument, "known here are direct, io");
  expect_error("zero:1M?size=2M", Errc::invalid_argument, "takes none");
  expect_error("delay+zero:1M?rate=1", Errc::invalid_argument, "known here are delay, bandwidth, jitter, seed");
  expect_error("file:/tmp?direct=maybe", Errc::invalid_argument, "one of on, off, auto");
}

SourceScheme pattern_scheme(std::string name) {
  return {.name = std::move(name),
          .syntax = "pattern:SIZE",
          .help = "",
          .parameters = {},
          .open = [](const SourceUri& uri) -> Result<std::unique_ptr<PageSource>> {
            return pattern_source(UFFDA_TRY(parse_size(uri.rest())));
          }};
}

TEST(RegisterSource, makes_a_scheme_known_beneath_every_layer) {
  ASSERT_TRUE(register_source(pattern_scheme("test-pattern")).has_value());
  const auto source = open_source("delay+test-pattern:64K?delay=1us");
  ASSERT_TRUE(source.has_value()) << source.error().message();
  const Buffer buffer(4096);
  ASSERT_TRUE(fetch(**source, 8192, buffer.bytes()).has_value());
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 8192), std::nullopt);
  const auto schemes = source_schemes();
  EXPECT_NE(std::ranges::find(schemes, "test-pattern", &SourceScheme::name), schemes.end());
}

TEST(RegisterSource, refuses_names_that_are_taken_or_bad) {
  EXPECT_EQ(register_source(pattern_scheme("file")).error().code(), Errc::already_exists);
  EXPECT_EQ(register_source(pattern_scheme("")).error().code(), Errc::invalid_argument);
  EXPECT_EQ(register_source(pattern_scheme("A+b")).error().code(), Errc::invalid_argument);
  EXPECT_EQ(register_source({.name = "test-empty", .syntax = "", .help = "", .parameters = {}, .open = nullptr})
                .error()
                .code(),
            Errc::invalid_argument);
  EXPECT_EQ(register_source_layer({.name = "delay", .help = "", .parameters = {}, .wrap = nullptr}).error().code(),
            Errc::invalid_argument);
}

TEST(SourceSchemes, have_help_for_every_entry_and_parameter) {
  for (const SourceScheme& scheme : source_schemes()) {
    if (scheme.name.starts_with("test-")) continue;
    EXPECT_TRUE(scheme.syntax.starts_with(scheme.name + ":")) << scheme.name;
    EXPECT_FALSE(scheme.help.empty()) << scheme.name;
    for (const auto& parameter : scheme.parameters) EXPECT_FALSE(parameter.help.empty()) << parameter.key;
  }
  for (const SourceLayer& layer : source_layers()) {
    EXPECT_FALSE(layer.help.empty()) << layer.name;
    for (const auto& parameter : layer.parameters) EXPECT_FALSE(parameter.help.empty()) << parameter.key;
  }
}

TEST(Registry, a_scheme_of_two_words_is_not_a_layer_and_a_scheme) {
  ASSERT_TRUE(register_source(
      {.name = "two+words", .syntax = "two+words:SIZE", .help = "zeroes", .open = [](const SourceUri& uri) {
         return open_source("zero:" + uri.rest());
       }}));
  EXPECT_TRUE(open_source("two+words:4K").has_value());
  EXPECT_EQ((*open_source("delay+two+words:4K"))->properties().size.value, 4096U);
  expect_error("words:4K", Errc::not_found, "unknown source 'words:'");
  EXPECT_FALSE(register_source({.name = "a+b+c", .open = [](const SourceUri&) { return open_source("zero:1"); }}));
  EXPECT_FALSE(register_source({.name = "+b", .open = [](const SourceUri&) { return open_source("zero:1"); }}));
}

TEST(Registry, what_can_only_be_read_is_not_stored_to) {
  const auto refused = [](const std::string& uri) { return create_source(uri, {.size = 4_KiB}).error(); };
  EXPECT_EQ(refused("zero:4K").code(), Errc::unsupported);
  EXPECT_EQ(refused("nosuch:4K").code(), Errc::not_found);
  EXPECT_EQ(refused("delay+zero:4K").code(), Errc::invalid_argument);
}

TEST(Extents, are_inside_of_the_source_and_data_where_nothing_is_known) {
  const PatternFile file(10'000);
  const auto source = open_source("file:" + file.path());
  ASSERT_TRUE(source.has_value());
  const ByteRange range{{100}, {9'900}};
  const auto extents = (*source)->extents(range);
  ASSERT_TRUE(extents.has_value());
  EXPECT_EQ(extents->front().range.start, range.start);
  EXPECT_FALSE((*source)->extents({{0}, {10'001}}).has_value());
  EXPECT_FALSE((*source)->extents({{0}, {0}}).has_value());
  EXPECT_EQ((*open_source("delay+zero:1M"))->extents({{0}, {4096}})->front().kind, Extent::Kind::zero);
}

}  // namespace
}  // namespace uffda::test
