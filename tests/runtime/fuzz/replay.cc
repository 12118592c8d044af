// Runs a fuzz target over a corpus, and over seeded mutations of it: what the tests do, without libFuzzer.
//
// replay CORPUS MUTATIONS: every input of the file, one a line in hexadecimal digits, and that many
// mutations of each.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

std::vector<Input> read(const char* path) {
  std::vector<Input> inputs;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    Input& input = inputs.emplace_back();
    for (size_t at = 0; at + 2 <= line.size(); at += 2)
      input.push_back(static_cast<uint8_t>(std::stoi(line.substr(at, 2), nullptr, 16)));
  }
  return inputs;
}

// Up to four of: a bit turned, a byte replaced, bytes taken out, put in, or come from another input.
Input mutated(Input input, const std::vector<Input>& corpus, std::mt19937& random) {
  const auto below = [&random](size_t n) { return n == 0 ? size_t{0} : random() % n; };
  const auto at = [&](size_t n) { return static_cast<Input::difference_type>(below(n)); };
  for (size_t times = 1 + below(4); times > 0; --times) {
    const size_t size = input.size();
    switch (below(5)) {
      case 0:
        if (size > 0) input[below(size)] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:
        if (size > 0) input[below(size)] = static_cast<uint8_t>(below(2) == 0 ? 255 * below(2) : below(256));
        break;
      case 2:
        if (size > 0) {
          const auto first = input.begin() + at(size);
          input.erase(first, first + at(static_cast<size_t>(input.end() - first) + 1));
        }
        break;
      case 3:
        input.insert(input.begin() + at(size + 1), 1 + below(9), static_cast<uint8_t>(below(256)));
        break;
      default: {
        const Input& other = corpus[below(corpus.size())];
        if (!other.empty()) input.insert(input.end(), other.begin() + at(other.size()), other.end());
      }
    }
  }
  return input;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: replay CORPUS MUTATIONS\n");
    return 2;
  }
  const std::vector<Input> corpus = read(arguments[1]);
  const int mutations = std::atoi(arguments[2]);
  std::mt19937 random(1);
  size_t runs = 0;
  for (const Input& input : corpus) {
    LLVMFuzzerTestOneInput(input.data(), input.size());
    for (int i = 0; i < mutations; ++i, ++runs) {
      const Input other = mutated(input, corpus, random);
      LLVMFuzzerTestOneInput(other.data(), other.size());
    }
  }
  std::printf("%zu inputs, %zu mutations\n", corpus.size(), runs);
  return corpus.empty() ? 1 : 0;
}
