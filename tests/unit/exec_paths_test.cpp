// PATH of --map, and the placeholders that are made where there is none.
#include "exec/paths.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace uffda::exec {
namespace {

namespace fs = std::filesystem;

class Paths : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "uffda-paths-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = fs::canonical(name);
  }
  void TearDown() override { fs::remove_all(directory_); }
  [[nodiscard]] std::string at(const char* name) const { return directory_ / name; }
  void write(const char* name, const char* text) const { std::ofstream(at(name)) << text; }

  fs::path directory_;
};

TEST_F(Paths, AreMadeAbsoluteAndLinksResolved) {
  write("file", "x");
  fs::create_symlink("file", at("link"));
  EXPECT_EQ(resolve_path(at("link")).value(), at("file"));
  EXPECT_EQ(resolve_path(at("./new/../file")).value(), at("file"));
  EXPECT_EQ(resolve_path(at("a/b/new")).value(), at("a/b/new"));
  EXPECT_EQ(resolve_path("some-file-that-is-not-there").value(), fs::current_path() / "some-file-that-is-not-there");
}

TEST_F(Paths, WhatIsNoFileIsRefused) {
  fs::create_symlink("nothing", at("dangling"));
  for (const std::string& path :
       {std::string(), directory_.string(), at("new/"), std::string("/dev/null"), at("dangling")}) {
    const auto resolved = resolve_path(path);
    ASSERT_FALSE(resolved) << path;
    EXPECT_EQ(resolved.error().code(), Errc::invalid_argument) << path;
  }
}

TEST_F(Paths, APlaceholderAndItsDirectoriesComeAndGo) {
  auto point = MountPoint::prepare(at("a/b/new"));
  ASSERT_TRUE(point);
  EXPECT_TRUE(fs::is_regular_file(at("a/b/new")));
  point->remove();
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(Paths, TheLastUserRemovesThePlaceholder) {
  auto first = MountPoint::prepare(at("new"));
  auto second = MountPoint::prepare(at("new"));
  ASSERT_TRUE(first && second);
  first->remove();
  EXPECT_TRUE(fs::exists(at("new")));
  second->remove();
  EXPECT_FALSE(fs::exists(at("new")));
}

TEST_F(Paths, WhatSomebodyPutThereStays) {
  write("full", "x");
  write("empty", "");
  auto replaced = MountPoint::prepare(at("replaced"));
  auto written = MountPoint::prepare(at("written"));
  ASSERT_TRUE(replaced && written);
  fs::remove(at("replaced"));
  write("replaced", "");
  write("written", "now it has bytes");
  for (const char* name : {"full", "empty"}) {
    auto point = MountPoint::prepare(at(name));
    ASSERT_TRUE(point);
    point->remove();
    EXPECT_TRUE(fs::exists(at(name))) << name;
  }
  replaced->remove();
  EXPECT_TRUE(fs::exists(at("replaced")));
  written->remove();
  EXPECT_TRUE(fs::exists(at("written")));
}

TEST_F(Paths, WhereNothingCanBeMadeTheAdviceIsToCreateIt) {
  write("file", "x");
  const auto point = MountPoint::prepare(at("file/below"));
  ASSERT_FALSE(point);
}

TEST_F(Paths, ThePrivateDirectoryIsPrivateAndGoes) {
  std::string path;
  {
    const auto directory = PrivateDirectory::create();
    ASSERT_TRUE(directory);
    path = fs::path(directory->file("socket")).parent_path();
    struct stat status{};
    ASSERT_EQ(::stat(path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777U, 0700U);
    std::ofstream(directory->file("socket")) << "x";
  }
  EXPECT_FALSE(fs::exists(path));
}

}  // namespace
}  // namespace uffda::exec
