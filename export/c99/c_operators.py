"""Operators of single elements in C: their text, precedence and helper functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operator:
    """An operator of single elements, and how C writes it.

    Attributes:
        text: the formula, with {} for each argument.
        binding: precedence of the formula in C; it gets parentheses where an argument needs a higher one.
        wants: precedence that each argument needs; the last one holds for all further arguments.
        integer: whether the value is an integer.
        c_type: the value's type, if it is one of integers that the formula names.
        helper: name of the function of `HELPERS` that the formula calls.
        noun: name for constant arguments in the C code.
    """

    text: str
    binding: int
    wants: tuple[int, ...] = (0,)
    integer: bool = False
    helper: str = ""
    noun: str = "constant"
    c_type: str = ""


CONDITIONAL, LOGICAL, COMPARISON, SUM, PRODUCT, UNARY, CALL = range(1, 8)


def _call(name: str, arguments: int = 1, *, noun: str = "constant") -> Operator:
    text = f"{name}({', '.join(['{}'] * arguments)})"
    return Operator(text, CALL, helper=name if name in HELPERS else "", noun=noun)


def _compare(symbol: str) -> Operator:
    return Operator(f"{{}} {symbol} {{}}", COMPARISON, (SUM,), integer=True)


HELPERS = {
    "dot": """\
/* Inner product of n weights and n numbers. */
static float dot(const POLICY_FLASH float *weights, const float *x, int n)
{
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) {
        sum += weights[i] * x[i];
    }
    return sum;
}""",
    "dot_int8": """\
/* Inner product of n weights and n numbers. */
static float dot_int8(const POLICY_FLASH int8_t *weights, const float *x, int n)
{
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) {
        sum += (float)weights[i] * x[i];
    }
    return sum;
}""",
    "inner": """\
/* Inner product of n numbers and n others. */
static float inner(const float *x, const float *y, int n)
{
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) {
        sum += x[i] * y[i];
    }
    return sum;
}""",
    "argmax": """\
/* Place of the largest of n numbers, the first of equals. */
static int32_t argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; ++i) {
        if (x[i] > x[best]) {
            best = i;
        }
    }
    return (int32_t)best;
}""",
    "argmin": """\
/* Place of the smallest of n numbers, the first of equals. */
static int32_t argmin(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; ++i) {
        if (x[i] < x[best]) {
            best = i;
        }
    }
    return (int32_t)best;
}""",
    "place": """\
/* An index of an axis of n elements: below 0 it counts from the end, and none is out of range. */
static int32_t place(int64_t index, int32_t n)
{
    index = index < 0 ? index + n : index;
    return (int32_t)(index < 0 ? 0 : index < n ? index : n - 1);
}""",
    "to_integer": """\
/* A number without its fraction, or the bound that it is beyond; 0 for NaN. */
static int64_t to_integer(float x, int64_t low, int64_t high)
{
    if (isnan(x)) {
        return 0;
    }
    return x <= (float)low ? low : x >= (float)high ? high : (int64_t)x;
}""",
    "product": """\
static float product(const float *x, int n)
{
    float result = 1.0f;
    for (int i = 0; i < n; ++i) {
        result *= x[i];
    }
    return result;
}""",
    "total": """\
static float total(const float *x, int n)
{
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) {
        sum += x[i];
    }
    return sum;
}""",
    "largest": """\
static float largest(const float *x, int n)
{
    float best = x[0];
    for (int i = 1; i < n; ++i) {
        best = x[i] > best ? x[i] : best;
    }
    return best;
}""",
    "smallest": """\
static float smallest(const float *x, int n)
{
    float best = x[0];
    for (int i = 1; i < n; ++i) {
        best = x[i] < best ? x[i] : best;
    }
    return best;
}""",
    # A NaN goes through these, as it does in ONNX Runtime: a broken sensor must not look like a bound.
    "minimum": """\
static float minimum(float x, float y)
{
    return x < y || isnan(x) ? x : y;
}""",
    "maximum": """\
static float maximum(float x, float y)
{
    return x > y || isnan(x) ? x : y;
}""",
    "sign": """\
static float sign(float x)
{
    return (float)((x > 0.0f) - (x < 0.0f));
}""",
    "floor_mod": """\
/* The remainder that has the divisor's sign; 0 for a divisor of 0. */
static int64_t floor_mod(int64_t x, int64_t y)
{
    const int64_t rest = y == 0 || y == -1 ? 0 : x % y;
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}""",
    "quotient": """\
/* Rounded towards zero; 0 for a divisor of 0. */
static int64_t quotient(int64_t x, int64_t y)
{
    return y == 0 ? 0 : y == -1 ? (int64_t)(0 - (uint64_t)x) : x / y;
}""",
    "minimum_int": """\
static int64_t minimum_int(int64_t x, int64_t y)
{
    return x < y ? x : y;
}""",
    "maximum_int": """\
static int64_t maximum_int(int64_t x, int64_t y)
{
    return x > y ? x : y;
}""",
    "relu": """\
static float relu(float x)
{
    return x < 0.0f ? 0.0f : x;
}""",
    "leaky_relu": """\
static float leaky_relu(float x, float slope)
{
    return x < 0.0f ? slope * x : x;
}""",
    "elu": """\
static float elu(float x, float alpha)
{
    return x < 0.0f ? alpha * expm1f(x) : x;
}""",
    "sigmoid": """\
static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}""",
    "softplus": """\
static float softplus(float x)
{
    return x > 0.0f ? x + log1pf(expf(-x)) : log1pf(expf(x));
}""",
    "softsign": """\
static float softsign(float x)
{
    return x / (1.0f + fabsf(x));
}""",
}
"""C functions that are written out where they are used."""

ADD = Operator("{} + {}", SUM, (SUM, PRODUCT), noun="offset")
SUBTRACT = Operator("{} - {}", SUM, (SUM, PRODUCT), noun="offset")
MULTIPLY = Operator("{} * {}", PRODUCT, (PRODUCT, UNARY), noun="scale")
WEIGHT_SCALE = Operator(MULTIPLY.text, MULTIPLY.binding, MULTIPLY.wants, noun="weight_scale")
DIVIDE = Operator("{} / {}", PRODUCT, (PRODUCT, UNARY), noun="divisor")
MINIMUM = _call("minimum", 2, noun="upper")
MAXIMUM = _call("maximum", 2, noun="lower")
EXPONENTIAL = _call("expf")
LOGARITHM = _call("logf")
SQUARE_ROOT = _call("sqrtf")
ABSOLUTE = _call("fabsf")
ELU = _call("elu", 2)
FLOAT_MOD = _call("fmodf", 2)
TO_INTEGER = Operator("to_integer({}, {}, {})", CALL, integer=True, helper="to_integer")
TO_FLOAT = Operator("(float){}", UNARY, (UNARY,))
EQUAL = _compare("==")
SELECT = Operator("{} ? {} : {}", CONDITIONAL, (LOGICAL,))
SELECT_INTEGER = Operator(SELECT.text, SELECT.binding, SELECT.wants, integer=True)
TRUTH = Operator("{} != 0", COMPARISON, (SUM,), integer=True)

FLOATS: Mapping[str, Operator] = {
    "Abs": ABSOLUTE,
    "Acos": _call("acosf"),
    "Acosh": _call("acoshf"),
    "Add": ADD,
    "Asin": _call("asinf"),
    "Asinh": _call("asinhf"),
    "Atan": _call("atanf"),
    "Atanh": _call("atanhf"),
    "Ceil": _call("ceilf"),
    "Cos": _call("cosf"),
    "Cosh": _call("coshf"),
    "Div": DIVIDE,
    "Elu": ELU,
    "Equal": EQUAL,
    "Erf": _call("erff"),
    "Exp": EXPONENTIAL,
    "Floor": _call("floorf"),
    "Greater": _compare(">"),
    "GreaterOrEqual": _compare(">="),
    "IsInf": Operator("!!isinf({})", UNARY, integer=True),
    "IsNaN": Operator("!!isnan({})", UNARY, integer=True),
    "LeakyRelu": _call("leaky_relu", 2, noun="slope"),
    "Less": _compare("<"),
    "LessOrEqual": _compare("<="),
    "Log": LOGARITHM,
    "Max": MAXIMUM,
    "Min": MINIMUM,
    "Mul": MULTIPLY,
    "Neg": Operator("-{}", UNARY, (CALL,)),
    "Pow": _call("powf", 2),
    "PRelu": _call("leaky_relu", 2, noun="slope"),
    "Reciprocal": Operator("1.0f / {}", PRODUCT, (UNARY,)),
    "Relu": _call("relu"),
    "Round": _call("rintf"),
    "Sigmoid": _call("sigmoid"),
    "Sign": _call("sign"),
    "Sin": _call("sinf"),
    "Sinh": _call("sinhf"),
    "Softplus": _call("softplus"),
    "Softsign": _call("softsign"),
    "Sqrt": SQUARE_ROOT,
    "Sub": SUBTRACT,
    "Sum": ADD,
    "Tan": _call("tanf"),
    "Tanh": _call("tanhf"),
}
"""Operators on floats, by ONNX's name."""

# Unsigned while they are computed, since only then is an overflow defined: it wraps around, as in ONNX.
INTEGERS: Mapping[str, Operator] = {
    "Add": Operator("(int64_t)((uint64_t){} + (uint64_t){})", UNARY, (UNARY,), integer=True),
    "Sub": Operator("(int64_t)((uint64_t){} - (uint64_t){})", UNARY, (UNARY,), integer=True),
    "Mul": Operator("(int64_t)((uint64_t){} * (uint64_t){})", UNARY, (UNARY,), integer=True),
    "Div": Operator("quotient({}, {})", CALL, integer=True, helper="quotient"),
    "Mod": Operator("floor_mod({}, {})", CALL, integer=True, helper="floor_mod"),
    "Neg": Operator("(int64_t)(0 - (uint64_t){})", UNARY, (UNARY,), integer=True),
    "Min": Operator("minimum_int({}, {})", CALL, integer=True, helper="minimum_int"),
    "Max": Operator("maximum_int({}, {})", CALL, integer=True, helper="maximum_int"),
    "Equal": EQUAL,
    "Greater": _compare(">"),
    "GreaterOrEqual": _compare(">="),
    "Less": _compare("<"),
    "LessOrEqual": _compare("<="),
    "And": Operator("{} && {}", LOGICAL, (COMPARISON,), integer=True),
    "Or": Operator("{} || {}", LOGICAL, (COMPARISON,), integer=True),
    "Not": Operator("!{}", UNARY, (CALL,), integer=True),
    "Xor": Operator("!{} != !{}", COMPARISON, (CALL,), integer=True),
}
"""Operators on integers and truth values, by ONNX's name."""

ATTRIBUTES: Mapping[str, tuple[tuple[str, float], ...]] = {
    "Elu": (("alpha", 1.0),),
    "LeakyRelu": (("alpha", 0.01),),
}
"""Attributes, with ONNX's default, that follow the arguments in C."""


def conversion(c_type: str) -> Operator:
    """Return the conversion of an integer to another type."""
    return Operator(f"({c_type}){{}}", UNARY, (UNARY,), integer=True, c_type=c_type)


def attribute_values(operator: str, attributes: Mapping[str, Any]) -> list[float]:
    """Return the attributes that the C call takes as numbers after its arguments."""
    return [float(attributes.get(name, default)) for name, default in ATTRIBUTES.get(operator, ())]
