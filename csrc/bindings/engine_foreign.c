/* engine_foreign.c: operands of other libraries. A call that has one is handed, as it came, to a Python function that knows the library.
 *
 * Which function is asked once for each type, of attnpy.integrations.handler_of, and remembered. No plain array comes here. */
#include "engine.h"

/* From a weak reference to a type to what handles its instances, or None. An entry goes when its type does. */
static PyObject *handlers;

bool
engine_foreign_start(void)
{
    if (!handlers)
        handlers = PyDict_New();
    return handlers != NULL;
}

/* Borrowed from the table, where it stays while the type lives. */
static PyObject *
ask(PyObject *type)
{
    PyObject *module = PyImport_ImportModule("attnpy.integrations");
    PyObject *handler = module ? PyObject_CallMethod(module, "handler_of", "O", type) : NULL;
    PyObject *forget = handler ? PyObject_GetAttrString(handlers, "pop") : NULL; /* is called with the weak reference, which is the key */
    PyObject *key = forget ? PyWeakref_NewRef(type, forget) : NULL;
    bool known = key && PyDict_SetItem(handlers, key, handler) == 0;
    Py_XDECREF(key);
    Py_XDECREF(forget);
    Py_XDECREF(handler);
    Py_XDECREF(module);
    return known ? handler : NULL;
}

/* Whether NumPy is to make an array of the object. If not, an exception is set, or e->foreign: then the call must end without one. */
bool
engine_native(struct engine *e, PyObject *object)
{
    if (PyArray_Check(object) || PyArray_IsAnyScalar(object) || PyList_CheckExact(object) || PyTuple_CheckExact(object))
        return true;
    PyObject *type = (PyObject *)Py_TYPE(object), *key = PyWeakref_NewRef(type, NULL);
    PyObject *handler = key ? PyDict_GetItemWithError(handlers, key) : NULL;
    Py_XDECREF(key);
    if (!handler && !PyErr_Occurred())
        handler = ask(type);
    if (handler != Py_None)
        e->foreign = handler;
    return handler == Py_None;
}

/* What the handler makes of the call: handler(name, arguments). */
PyObject *
engine_hand_over(const struct engine *e)
{
    PyObject *arguments = PyTuple_New(e->given), *answer = NULL;
    for (Py_ssize_t i = 0; arguments && i < e->given; i++) {
        Py_INCREF(e->arguments[i]);
        PyTuple_SetItem(arguments, i, e->arguments[i]);
    }
    if (arguments)
        answer = PyObject_CallFunction(e->foreign, "sO", e->function->name, arguments);
    Py_XDECREF(arguments);
    return answer;
}
