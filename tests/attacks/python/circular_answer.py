# expected: failed
# An answer that holds itself.
def twice(xs):
    answer = []
    answer.append(answer)
    return answer
