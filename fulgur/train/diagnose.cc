#include "fulgur/train/diagnose.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/isnan.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>

#include <map>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

// What the callbacks below, plain functions, see.
struct Watch {
  std::map<const void*, std::string> parameters;  // by where their values lie
  std::string last_parameter = "the embedding", found;
};
thread_local Watch* watch = nullptr;

// -inf is a value of masked scores; NaN and +inf are nowhere.
bool wrong(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_floating_point() || tensor.numel() == 0) return false;
  auto values = tensor.detach();
  return at::isnan(values).any().item<bool>() || (values == INFINITY).any().item<bool>();
}

template <class Values, class Visit>
void each_tensor(const Values& values, const Visit& visit) {
  for (const auto& value : values) {
    if (value.isTensor()) visit(value.toTensor());
    else if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  }
}

struct Seen : at::ObserverContext {
  bool inputs_wrong = false;
};

std::unique_ptr<at::ObserverContext> before(const at::RecordFunction& call) {
  auto seen = std::make_unique<Seen>();
  if (!watch || !watch->found.empty()) return seen;
  auto* own = std::exchange(watch, nullptr);  // looking is made of operations too
  each_tensor(call.inputs(), [&](const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.has_storage()) return;
    if (auto found = own->parameters.find(tensor.storage().data()); found != own->parameters.end())
      own->last_parameter = found->second;
    seen->inputs_wrong |= wrong(tensor);
  });
  watch = own;
  return seen;
}

void behind(const at::RecordFunction& call, at::ObserverContext* context) {
  if (!watch || !watch->found.empty() || !context || static_cast<Seen*>(context)->inputs_wrong) return;
  auto* own = std::exchange(watch, nullptr);
  std::string name = call.name();
  bool empty = name.find("empty") != std::string::npos;  // memory before anything was written
  if (!empty)
    each_tensor(call.outputs(), [&](const at::Tensor& tensor) {
      if (own->found.empty() && wrong(tensor)) own->found = cat(name, " at ", own->last_parameter);
    });
  watch = own;
}

}  // namespace

std::string diagnose_step(Transformer& model, const StageConfig& config, const std::vector<TrainBatch>& parts,
                          const Tokenizer& tokenizer, const Optimizer& optimizer) {
  Watch own;
  for (const auto& parameter : parameters(model.weights())) {
    if (!at::isfinite(parameter.tensor->detach()).all().item<bool>())
      return cat("the parameter ", parameter.name, " itself is not finite");
    own.parameters[parameter.tensor->storage().data()] = parameter.name;
  }
  auto gradient = optimizer.largest_gradient();
  auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(before, behind).needsInputs(true).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
  watch = &own;
  measure_losses(model, config, parts, tokenizer);
  watch = nullptr;
  at::removeCallback(handle);
  if (!own.found.empty()) return cat("the first operation to go wrong is ", own.found);
  return cat("the forward pass is finite; the gradient stands out at ", gradient);
}

}  // namespace fulgur
