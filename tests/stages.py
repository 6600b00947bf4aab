"""What hangs on what: names of stages that several tests expect to run."""

USER_PROFILES = {"user_profiles", "user_profile_failures"}
OF_USERS = {  # what the users' profiles reach, before the models
    "user_text_embeddings",
    "user_subspace_graph",
    "user_item_subspace_graph",
    "user_similarity_graph",
    "user_item_similarity_graph",
    "semantic_graph",
}
OF_A_MODEL = ("trained_model", "user_metrics", "recommendations")
