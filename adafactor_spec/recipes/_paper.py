from .._recipe import Recipe


def paper() -> Recipe:
    """Algorithms 4 to 6 of the paper, rho_t = min(1e-2, t^-1/2): the defaults of `Recipe`.

    The paper speaks of matrices and vectors; with more axes the last two are factored, as the authors' own code in
    tensor2tensor does it.

    Source: Shazeer and Stern, arXiv 1804.04235.
    """
    return Recipe()
